//! Dispatches to the half that is asked for.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use imgbased_helper::admin::cli::Cli;
use imgbased_helper::admin::imgbase;
use imgbased_helper::down;
use imgbased_helper::early;
use imgbased_helper::sys::logger::say_error;
use imgbased_helper::sys::sandbox;
use nix::sys::stat::{Mode, umask};

/// The name under which systemd runs the binary as a generator.
const GENERATOR: &str = "imgbased-generator";
/// The name under which systemd runs its copy of the binary when the system has ended.
const SHUTDOWN: &str = "shutdown";
/// The name of the tool whose command forms the binary takes as well.
const IMGBASE: &str = "imgbase";

fn main() -> ExitCode {
    // What is made without a mode of its own is the same, whoever calls: tar(1) makes directories so that an archive has not.
    umask(Mode::from_bits_truncate(0o022));
    let mut args = env::args_os();
    let called_as = args.next().unwrap_or_default();
    let name = Path::new(&called_as).file_name();
    let result = if name == Some(GENERATOR.as_ref()) {
        generate(args.nth(1))
    } else if name == Some(SHUTDOWN.as_ref()) {
        let verb = args.next();
        down::go_down(verb.as_ref().and_then(|verb| verb.to_str())).map(|()| ExitCode::FAILURE)
    } else if name == Some(IMGBASE.as_ref()) {
        imgbase::run(args)
    } else {
        match args.next().as_ref().and_then(|noun| noun.to_str()) {
            Some("initrd") => {
                let verb = args.next();
                initrd(verb.as_ref(), args.next())
            }
            // Those it starts itself as.
            Some(sandbox::SANDBOX) => sandbox::watch(args),
            Some(sandbox::INIT) => sandbox::enter(args).map(|never| match never {}),
            _ => Cli::from_command_line().run(),
        }
    };
    result.unwrap_or_else(|error| {
        say_error(&error);
        ExitCode::FAILURE
    })
}

/// systemd.generator(7): the arguments are three directories, the second comes before all units.
fn generate(early_dir: Option<OsString>) -> Result<ExitCode> {
    let Some(early_dir) = early_dir else {
        bail!("{GENERATOR} is run by systemd, with three directories");
    };
    early::generate(Path::new(&early_dir))?;
    Ok(ExitCode::SUCCESS)
}

/// What the initramfs and units run, without the time that it takes to prepare for all other commands.
fn initrd(verb: Option<&OsString>, dir: Option<OsString>) -> Result<ExitCode> {
    match verb.and_then(|verb| verb.to_str()) {
        Some("is-layer") => return Ok(ExitCode::from(u8::from(!early::is_layer_boot()?))),
        Some("limit") => early::limit_time()?,
        Some("may-open-shell") => {
            return Ok(ExitCode::from(u8::from(!early::may_open_shell()?)));
        }
        Some("drivers") => early::load_drivers()?,
        Some("drivers-at-once") => early::load_drivers_at_once()?,
        Some("activate") => return Ok(ExitCode::from(u8::from(!early::activate_early()?))),
        Some("mount") => early::mount_sysroot()?,
        Some("hand-over") => early::hand_over()?,
        Some("retry") => early::retry()?,
        Some("generate-mounts") => {
            let dir = dir.context("it is run by a generator, with its first directory")?;
            early::generate_mounts(Path::new(&dir))?;
        }
        Some("mount-packages") => early::mount_packages()?,
        // The second name is that of the unit of earlier versions, which is there until the next start.
        Some("stage-shutdown" | "unpack") => down::stage()?,
        _ => bail!("`initrd` is for the initramfs; in its shell, `initrd retry` goes on booting"),
    }
    Ok(ExitCode::SUCCESS)
}
