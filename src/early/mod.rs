//! The half that runs in the initramfs: from the kernel command line to a mounted /sysroot. The verbs are
//! here, the story of a boot is in `mount.rs`. What it leaves for the volumes of the layer, its generator in the
//! running system reads.

mod clock;
pub mod cmdline;
mod drivers;
pub mod generator;
mod group;
mod mount;
mod restart;
mod shell;
mod sysroot;
mod udev;
mod volumes;
mod wait;

use std::fs;
use std::iter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::lvm::Lvm;
use crate::sys::cmd::Cmd;
use crate::sys::{logger, run};
use clock::Clock;
use cmdline::OnFailure;

/// Where dracut has its hooks, and where it had them before.
const HOOKS: [&str; 2] = ["/var/lib/dracut/hooks", "/lib/dracut/hooks"];

/// Whether the kernel command line names a layer: what the hooks of dracut ask before all else.
pub fn is_layer_boot() -> Result<bool> {
    Ok(cmdline::is_layer_boot(&read_cmdline()?))
}

/// Mounts the layer of the kernel command line at /sysroot, or the fallback; nothing if it names none.
/// The error is logged before it is returned. Does not return if a failure is to end in a reboot.
pub fn mount_sysroot() -> Result<()> {
    logger::start_for_console(false)?;
    let cmdline = read_cmdline()?;
    let result = mount::mount_requested(&cmdline).inspect_err(|error| log::error!("{error:#}"));
    end_dracuts_loop();
    if result.is_err() && cmdline::on_failure(&cmdline) == OnFailure::Reboot {
        restart::restart("as imgbased.onfail=reboot says".to_owned())?;
    }
    result
}

/// dracut's loop, which works beside the mount, is over; also where it just waits for udev.
fn end_dracuts_loop() {
    let leave = |path: &Path| {
        if let Err(error) = fs::write(path, "") {
            log::debug!("cannot write {}: {error}", path.display());
        }
    };
    if fs::create_dir_all(run::DIR).is_ok() {
        leave(Path::new(run::TRIED));
    }
    for dir in HOOKS.map(|dir| Path::new(dir).join("initqueue")) {
        if dir.is_dir() {
            leave(&dir.join("work"));
        }
    }
}

/// Leaves word of the volumes of a layer that a person has mounted at /sysroot. Where systemd is in the initramfs,
/// [`mount_sysroot`] does it.
pub fn hand_over() -> Result<()> {
    logger::start_for_console(false)?;
    if let Ok(Some(request)) = cmdline::parse(&read_cmdline()?) {
        mount::hand_over_mounted(&request)?;
    }
    Ok(())
}

/// Runs beside all else where a failed boot restarts: nothing that hangs or waits keeps the machine in the
/// initramfs for longer than the command line says. Does nothing for other boots.
pub fn limit_time() -> Result<()> {
    logger::start_for_console(false)?;
    match cmdline::limit(&read_cmdline()?) {
        Some(limit) => restart::restart_after(limit),
        None => Ok(()),
    }
}

/// Whether the emergency shell opens for everybody at the console. If not, the log says why.
pub fn may_open_shell() -> Result<bool> {
    logger::start_for_console(false)?;
    let refusal = shell::refusal(Path::new("/sys"), shell::is_password_asked);
    if let Some(reason) = refusal {
        log::error!("the emergency shell does not open without a password, since {reason}");
    }
    Ok(refusal.is_none())
}

/// Loads the drivers of disks; what they find comes before all that udev is told to look at later.
pub fn load_drivers() -> Result<()> {
    logger::start_for_console(false)?;
    load_drivers_now()
}

/// The same beside all that dracut does before its hook, unless dracut is told which drivers to load: that it does
/// not know before udev starts.
pub fn load_drivers_at_once() -> Result<()> {
    logger::start_for_console(false)?;
    if cmdline::chooses_drivers(&dracut_cmdline()?) {
        return Ok(());
    }
    load_drivers_now()
}

fn load_drivers_now() -> Result<()> {
    let mut clock = Clock::start();
    drivers::load().inspect_err(|error| log::warn!("{error:#}"))?;
    clock.end("drivers");
    clock.save()
}

/// Activates the layer if its group is complete already; else [`mount_sysroot`] does it. While udev
/// looks at all devices of a machine, lvm2 would wait for it. Returns whether it is active.
pub fn activate_early() -> Result<bool> {
    logger::start_for_console(false)?;
    // What is wrong is said by those who have to give up.
    let Ok(Some(request)) = cmdline::parse(&read_cmdline()?) else {
        return Ok(false);
    };
    let mut clock = Clock::start();
    let Some(group) = wait::complete_group(&request) else {
        return Ok(false);
    };
    let role = group::find(&request, &group)?;
    let shared = volumes::of(&group.metadata, role);
    let names = volumes::with_layer(&request.layer, &shared);
    clock.end("look");
    let lvm = Lvm::on_devices(request.vg.clone(), group.devices);
    volumes::activate(&lvm, &names, &lvm.activate_at_boot(&names))?;
    clock.end("activate early");
    clock.save()?;
    Ok(true)
}

/// What a person in the emergency shell runs who has mended what was wrong: mounts the layer, and has
/// systemd go on.
pub fn retry() -> Result<()> {
    logger::start_for_console(true)?;
    let cmdline = read_cmdline()?;
    ensure!(
        is_initramfs(),
        "this is not the initramfs: there is nothing to retry"
    );
    ensure!(
        cmdline::is_layer_boot(&cmdline),
        "the kernel command line names no layer: there is nothing to retry"
    );
    mount::mount_requested(&cmdline)?;
    if Path::new("/run/systemd/system").exists() {
        Cmd::new("systemctl")
            .args(["--no-block", "default"])
            .run()?;
        log::info!("the boot goes on");
    } else {
        log::info!("the boot goes on when you leave this shell");
    }
    Ok(())
}

/// The generator: `early_dir` is its second argument.
pub fn generate(early_dir: &Path) -> Result<()> {
    logger::start_for_console(false)?;
    read_cmdline()
        .and_then(|cmdline| generator::run(&cmdline, early_dir))
        .inspect_err(|error| log::error!("generator: {error:#}"))
}

/// The generator of the running system: `dir` is its first argument.
pub fn generate_mounts(dir: &Path) -> Result<()> {
    logger::start_for_console(false)?;
    let now = volumes::running_group();
    volumes::write_units(dir, run::VOLUMES, now, Path::new("/etc/fstab"))
        .inspect_err(|error| log::error!("generator of mounts: {error:#}"))
}

/// What a unit of the running system does where /var is on a volume.
pub fn mount_packages() -> Result<()> {
    logger::start_for_console(false)?;
    volumes::mount_packages().inspect_err(|error| log::error!("{error:#}"))
}

fn read_cmdline() -> Result<Vec<u8>> {
    fs::read("/proc/cmdline").context("cannot read the kernel command line")
}

/// What dracut takes for the kernel command line: it puts before that what the initramfs was made with.
fn dracut_cmdline() -> Result<Vec<u8>> {
    let built_in = fs::read_dir("/etc/cmdline.d")
        .into_iter()
        .flatten()
        .flatten();
    let built_in = built_in.map(|file| file.path());
    let mut all = Vec::new();
    for path in iter::once(PathBuf::from("/etc/cmdline")).chain(built_in) {
        all.extend(fs::read(path).unwrap_or_default());
        all.push(b'\n');
    }
    all.extend(read_cmdline()?);
    Ok(all)
}

/// Whether this is the initramfs, and not a system that was booted by it.
fn is_initramfs() -> bool {
    // The second name is only there with systemd.
    let names = ["/usr/lib/initrd-release", "/etc/initrd-release"];
    names.iter().any(|name| Path::new(name).exists())
}
