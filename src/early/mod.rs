//! The half that runs in the initramfs: from the kernel command line to a mounted /sysroot.

pub mod cmdline;
mod drivers;
pub mod generator;
mod sysroot;
mod wait;

use std::fs;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use log::{Level, LevelFilter};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};
use simplelog::{CombinedLogger, SharedLogger};

use crate::lvm::Lvm;
use crate::lvm::disk::Metadata;
use crate::model::boot_record::{BootRecord, Phase};
use crate::model::layout::{Role, bootable};
use crate::model::name::LvName;
use crate::sys::cmd::Cmd;
use crate::sys::logger::{self, LineLogger};
use crate::sys::run;
use cmdline::{OnFailure, Request};
use sysroot::Filesystem;
use wait::Group;

/// How many names an error lists. A record of the kernel's log is short.
const NAMES_MAX: usize = 20;
/// How long the reason of a reboot stays on the screen.
const REBOOT_DELAY: Duration = Duration::from_secs(5);

/// Takes the time of the phases, over all runs of the helper in one boot.
struct Clock {
    /// When the current phase began.
    begun: Instant,
    /// What this process had worked by then. systemd's work between fork and exec counts as ours.
    worked: u64,
    past: Times,
}

#[derive(Default, Serialize, Deserialize)]
struct Times {
    own_microseconds: u64,
    phases: Vec<Phase>,
}

impl Clock {
    /// Goes on where the run before this one has stopped.
    fn start() -> Self {
        Self {
            begun: Instant::now(),
            worked: own_microseconds(),
            past: run::read_json(run::TIMES).unwrap_or_default(),
        }
    }

    fn end(&mut self, phase: &str) {
        self.past.phases.push(Phase {
            name: phase.to_owned(),
            milliseconds: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        self.begun = Instant::now();
    }

    fn times(self) -> Times {
        let own_microseconds = own_microseconds().saturating_sub(self.worked);
        Times {
            own_microseconds: self.past.own_microseconds + own_microseconds,
            phases: self.past.phases,
        }
    }

    /// For the next run.
    fn save(self) -> Result<()> {
        run::write_json(run::TIMES, &self.times())
    }
}

/// The time that this process has had a processor, in user mode and in the kernel.
fn own_microseconds() -> u64 {
    // It fails for a bad pointer only.
    let time = getrusage(UsageWho::RUSAGE_SELF)
        .map(|usage| (usage.user_time() + usage.system_time()).num_microseconds());
    u64::try_from(time.unwrap_or_default()).unwrap_or_default()
}

/// Mounts the layer of the kernel command line at /sysroot, or the fallback; nothing if it names none.
/// The error is logged before it is returned. Does not return if a failure is to end in a reboot.
pub fn mount_sysroot() -> Result<()> {
    start_logging(false)?;
    let cmdline = read_cmdline()?;
    let result = mount_requested(&cmdline).inspect_err(|error| log::error!("{error:#}"));
    if result.is_err() && cmdline::on_failure(&cmdline) == OnFailure::Reboot {
        restart()?;
    }
    result
}

/// Loads the drivers of disks; what they find comes before all that udev is told to look at later.
pub fn load_drivers() -> Result<()> {
    start_logging(false)?;
    let mut clock = Clock::start();
    drivers::load().inspect_err(|error| log::warn!("{error:#}"))?;
    clock.end("drivers");
    clock.save()
}

/// Activates the layer if its group is complete already; else [`mount_sysroot`] does it. While udev
/// looks at all devices of a machine, lvm2 would wait for it.
pub fn activate_early() -> Result<()> {
    start_logging(false)?;
    // What is wrong is said by those who have to give up.
    let Ok(Some(request)) = cmdline::parse(&read_cmdline()?) else {
        return Ok(());
    };
    let mut clock = Clock::start();
    let Some(group) = wait::complete_group(&request.vg, &request.layer)? else {
        return Ok(());
    };
    find(&request, &group)?;
    clock.end("look");
    let lvm = Lvm::on_devices(request.vg.clone(), group.devices);
    lvm.activate_at_boot(&request.layer).run()?;
    clock.end("activate early");
    clock.save()
}

/// What a person in the emergency shell runs who has mended what was wrong: mounts the layer, and has
/// systemd go on.
pub fn retry() -> Result<()> {
    start_logging(true)?;
    let cmdline = read_cmdline()?;
    // The second name is only there with systemd.
    let is_initramfs = |path: &str| Path::new(path).exists();
    ensure!(
        is_initramfs("/usr/lib/initrd-release") || is_initramfs("/etc/initrd-release"),
        "this is not the initramfs: there is nothing to retry"
    );
    ensure!(
        cmdline::is_layer_boot(&cmdline),
        "the kernel command line names no layer: there is nothing to retry"
    );
    mount_requested(&cmdline)?;
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
    start_logging(false)?;
    read_cmdline()
        .and_then(|cmdline| generator::run(&cmdline, early_dir))
        .inspect_err(|error| log::error!("generator: {error:#}"))
}

fn read_cmdline() -> Result<Vec<u8>> {
    fs::read("/proc/cmdline").context("cannot read the kernel command line")
}

fn mount_requested(cmdline: &[u8]) -> Result<()> {
    let Some(request) = cmdline::parse(cmdline)? else {
        return Ok(());
    };
    for remark in &request.remarks {
        log::warn!("{remark}");
    }
    let dm_name = request.vg.dm_name(&request.layer)?;
    if sysroot::is_mounted(&dm_name) {
        log::info!("{dm_name} is mounted already");
        return Ok(());
    }
    ensure!(
        !sysroot::is_taken(),
        "another root is mounted at /sysroot; unmount it, or leave the shell to boot it"
    );
    let Err(error) = mount(&request, None) else {
        return Ok(());
    };
    sysroot::unmount();
    let Some(fallback) = request.fallback.clone() else {
        return Err(error);
    };
    log::error!("{error:#}");
    log::warn!("trying the fallback {fallback}");
    let second = Request {
        layer: fallback,
        ..request.clone()
    };
    mount(&second, Some(&request))
        .inspect_err(|_| sysroot::unmount())
        .with_context(|| format!("the fallback {} failed too", second.layer))
}

/// Waits for the disks, activates the layer, checks its filesystem and mounts it, if need be
/// `instead_of` another one.
fn mount(request: &Request, instead_of: Option<&Request>) -> Result<()> {
    let mut clock = Clock::start();
    let Request { vg, layer, .. } = request;
    let dm_name = vg.dm_name(layer)?;
    let group = wait::for_group(vg, layer, request.timeout)?;
    let role = find(request, &group)?;
    clock.end("wait");
    let lvm = Lvm::on_devices(vg.clone(), group.devices);
    let device = lvm.device(layer)?;
    activate(&lvm, layer, &group.metadata).map_err(|error| {
        let explained = lvm.explain_activation(layer, &format!("{error:#}"));
        error.context(explained.unwrap_or_else(|| format!("cannot activate {dm_name}")))
    })?;
    // lvm2 calls it a success when it leaves out a volume.
    ensure!(device.exists(), "lvm2 did not activate {dm_name}");
    clock.end("activate");
    let filesystem = Filesystem::find(request, &device, &dm_name)?;
    if role == Role::Base {
        filesystem.mount_base()?;
    } else {
        filesystem.check()?;
        clock.end("check");
        filesystem.mount_layer()?;
    }
    clock.end("mount");
    if instead_of.is_some() {
        let kernel = uname().context("cannot ask for the kernel's version")?;
        let release = kernel.release().to_string_lossy();
        ensure!(
            sysroot::has_modules_of(&release),
            "{layer} has no modules for the kernel {release}"
        );
    }
    let times = clock.times();
    let record = BootRecord {
        version: 1,
        vg: vg.to_string(),
        layer: layer.to_string(),
        role: if role == Role::Base { "base" } else { "layer" }.to_owned(),
        device: device.display().to_string(),
        instead_of: instead_of.map(|first| first.layer.to_string()),
        milliseconds: times.phases.iter().map(|phase| phase.milliseconds).sum(),
        own_microseconds: times.own_microseconds,
        phases: times.phases,
    };
    if let Err(error) = run::write_json(run::BOOT_RECORD, &record) {
        log::warn!("{error:#}");
    }
    log::info!("{dm_name} mounted in {}", record.times());
    Ok(())
}

fn activate(lvm: &Lvm, layer: &LvName, metadata: &Metadata) -> Result<()> {
    if !lvm.device(layer)?.exists() {
        lvm.activate_at_boot(layer).run()?;
    }
    let mut pools = metadata
        .volumes
        .iter()
        .filter(|(_, role)| *role == Role::Pool);
    let Some((pool, _)) = pools.next() else {
        return Ok(());
    };
    if lvm.needs_check(pool)? {
        log::warn!(
            "checking the whole pool {}/{pool}, which can take long",
            lvm.vg()
        );
        lvm.deactivate(layer).run()?;
        lvm.activate_checked_at_boot(layer).run()?;
    }
    Ok(())
}

/// What the requested name is, a layer or a base; the error says which there are.
fn find(request: &Request, group: &Group) -> Result<Role> {
    let Request { vg, layer, .. } = request;
    let volumes = &group.metadata.volumes;
    let volume = volumes.iter().find(|(name, _)| name == layer.as_str());
    match volume.map(|(_, role)| *role) {
        Some(role @ (Role::Base | Role::Layer)) => Ok(role),
        Some(Role::Incomplete) => {
            bail!("{layer} in {vg} was never finished; {}", names(volumes))
        }
        Some(_) => bail!("{layer} in {vg} is no layer; {}", names(volumes)),
        None => bail!("no layer {layer} in {vg}; {}", names(volumes)),
    }
}

fn names(volumes: &[(String, Role)]) -> String {
    let names = bootable(volumes.iter().map(|(name, role)| (name.as_str(), *role)));
    if names.is_empty() {
        return "it has no layers".to_owned();
    }
    // The newest are last.
    let left_out = names.len().saturating_sub(NAMES_MAX);
    let mut text = "there are:".to_owned();
    for name in &names[left_out..] {
        text += &format!(" {name}");
    }
    if left_out > 0 {
        text += &format!(" and {left_out} older");
    }
    text
}

/// Restarts the machine, so that the boot loader can choose another entry.
fn restart() -> Result<()> {
    log::error!(
        "restarting in {} s, as imgbased.onfail=reboot says",
        REBOOT_DELAY.as_secs()
    );
    sleep(REBOOT_DELAY);
    nix::unistd::sync();
    reboot(RebootMode::RB_AUTOBOOT).context("cannot restart")?;
    Ok(())
}

/// Everything goes to the kernel's log, which the journal reads. Where the kernel is told to show
/// not even errors, they are written to the console as well. Someone in a shell reads standard error.
fn start_logging(in_shell: bool) -> Result<()> {
    let mut loggers: Vec<Box<dyn SharedLogger>> = Vec::new();
    if let Ok(kmsg) = LineLogger::kernel(LevelFilter::Info) {
        loggers.push(Box::new(kmsg));
    }
    if in_shell {
        let stderr = LineLogger::plain(LevelFilter::Info, io::stderr());
        loggers.push(Box::new(stderr));
    } else if loggers.is_empty() || !logger::is_shown_on_console(Level::Error) {
        if let Ok(console) = fs::OpenOptions::new().write(true).open("/dev/console") {
            let console = LineLogger::plain(LevelFilter::Error, console);
            loggers.push(Box::new(console));
        }
    }
    CombinedLogger::init(loggers).context("cannot start logging")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(volumes: &[(String, Role)]) -> Group {
        Group {
            metadata: Metadata {
                volumes: volumes.to_vec(),
                ..Metadata::default()
            },
            devices: Vec::new(),
            missing: 0,
        }
    }

    fn request(layer: &str) -> Request {
        let cmdline = format!("imgbased.layer={layer}");
        cmdline::parse(cmdline.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn an_unknown_layer_is_answered_with_those_that_there_are() {
        let group = group(&[
            ("Base-0.10".into(), Role::Layer),
            ("Base-0".into(), Role::Base),
            ("Base-0.9".into(), Role::Layer),
            ("Base-0.2".into(), Role::Incomplete),
            ("Config".into(), Role::Volume),
        ]);
        assert_eq!(find(&request("Base-0.9"), &group).unwrap(), Role::Layer);
        assert_eq!(find(&request("Base-0"), &group).unwrap(), Role::Base);
        let message = |layer: &str| find(&request(layer), &group).unwrap_err().to_string();
        assert_eq!(
            message("Base-9.9"),
            "no layer Base-9.9 in HostVG; there are: Base-0 Base-0.9 Base-0.10"
        );
        assert!(message("Base-0.2").contains("was never finished"));
        assert!(message("Config").contains("is no layer"));
    }

    #[test]
    fn the_list_of_names_fits_a_record_of_the_kernels_log() {
        let many: Vec<(String, Role)> = (1..=500)
            .map(|n| (format!("Base-0.{n}"), Role::Layer))
            .collect();
        let message = find(&request("x"), &group(&many)).unwrap_err().to_string();
        assert!(message.len() < 900, "{}", message.len());
        assert!(message.ends_with("Base-0.500 and 480 older"), "{message}");
    }
}
