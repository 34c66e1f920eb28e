//! The half that runs in the initramfs: from the kernel command line to a mounted /sysroot.

pub mod cmdline;
pub mod generator;
mod sysroot;
mod wait;

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use log::{Level, LevelFilter};
use serde::{Deserialize, Serialize};
use simplelog::{CombinedLogger, ConfigBuilder, SharedLogger, WriteLogger};

use crate::model::layout::{Group, Role};
use crate::sys::kernel_log::{self, KernelLogger};
use cmdline::Request;

/// How many names an error lists. A record of the kernel's log is short.
const NAMES_MAX: usize = 20;
/// Where the running system finds what was booted.
pub const RECORD: &str = "/run/imgbased/boot.json";

/// What was booted and how long it took.
#[derive(Debug, Serialize, Deserialize)]
pub struct BootRecord {
    pub version: u32,
    pub vg: String,
    pub layer: String,
    pub role: String,
    pub device: String,
    /// From the start of the helper to the mounted root, in milliseconds.
    pub milliseconds: u64,
}

/// Mounts the layer of the kernel command line at /sysroot; nothing if it names none. The error is
/// logged before it is returned.
pub fn mount_sysroot() -> Result<()> {
    start_logging()?;
    let result = read_cmdline().and_then(|cmdline| match cmdline::parse(&cmdline)? {
        Some(request) => boot(&request),
        None => Ok(()),
    });
    result.inspect_err(|error| log::error!("{error:#}"))
}

/// The generator: `early_dir` is its second argument.
pub fn generate(early_dir: &Path) -> Result<()> {
    start_logging()?;
    read_cmdline()
        .and_then(|cmdline| generator::run(&cmdline, early_dir))
        .inspect_err(|error| log::error!("generator: {error:#}"))
}

fn read_cmdline() -> Result<Vec<u8>> {
    fs::read("/proc/cmdline").context("cannot read the kernel command line")
}

fn boot(request: &Request) -> Result<()> {
    let start = Instant::now();
    for remark in &request.remarks {
        log::warn!("{remark}");
    }
    let (lvm, group) = wait::for_group(&request.vg, request.timeout)?;
    let role = find(request, &group)?;
    let dm_name = request.vg.dm_name(&request.layer)?;
    lvm.activate_at_boot(&request.layer)
        .run()
        .with_context(|| format!("cannot activate {dm_name}"))?;
    let device = lvm.device(&request.layer)?;
    if sysroot::is_mounted(&dm_name) {
        log::info!("{dm_name} is mounted already");
        return Ok(());
    }
    match role {
        Role::Base => sysroot::mount_base(request, &device, &dm_name)?,
        _ => sysroot::mount_layer(request, &device, &dm_name)?,
    }
    let record = BootRecord {
        version: 1,
        vg: request.vg.to_string(),
        layer: request.layer.to_string(),
        role: if role == Role::Base { "base" } else { "layer" }.to_owned(),
        device: device.display().to_string(),
        milliseconds: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    if let Err(error) = write_record(&record) {
        log::warn!("{error:#}");
    }
    log::info!("{dm_name} mounted in {} ms", record.milliseconds);
    Ok(())
}

/// What the requested name is, a layer or a base; the error says which there are.
fn find(request: &Request, group: &Group) -> Result<Role> {
    let wanted = request.layer.as_str();
    match group.volume(wanted).map(|volume| volume.role) {
        Some(role @ (Role::Base | Role::Layer)) => Ok(role),
        Some(Role::Incomplete) => bail!(
            "{wanted} in {} was never finished; {}",
            group.name,
            names(group)
        ),
        Some(_) => bail!("{wanted} in {} is no layer; {}", group.name, names(group)),
        None => bail!("no layer {wanted} in {}; {}", group.name, names(group)),
    }
}

fn names(group: &Group) -> String {
    let names = group.bootable();
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

fn write_record(record: &BootRecord) -> Result<()> {
    let write = || -> Result<()> {
        fs::create_dir_all("/run/imgbased")?;
        Ok(fs::write(RECORD, serde_json::to_vec_pretty(record)?)?)
    };
    write().with_context(|| format!("cannot write {RECORD}"))
}

/// Everything goes to the kernel's log, which the journal reads. Where the kernel is told to show
/// not even errors, they are written to the console as well.
fn start_logging() -> Result<()> {
    let mut loggers: Vec<Box<dyn SharedLogger>> = Vec::new();
    if let Ok(kmsg) = KernelLogger::new(LevelFilter::Info) {
        loggers.push(kmsg);
    }
    if loggers.is_empty() || !kernel_log::is_shown_on_console(Level::Error) {
        let config = ConfigBuilder::new()
            .set_time_level(LevelFilter::Off)
            .set_target_level(LevelFilter::Off)
            .set_thread_level(LevelFilter::Off)
            .build();
        if let Ok(console) = fs::OpenOptions::new().write(true).open("/dev/console") {
            loggers.push(WriteLogger::new(LevelFilter::Error, config, console));
        }
    }
    CombinedLogger::init(loggers).context("cannot start logging")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::Volume;

    fn group(volumes: &[(String, Role)]) -> Group {
        let volume = |(name, role): &(String, Role)| Volume {
            name: name.clone(),
            role: *role,
            ..Volume::default()
        };
        Group {
            tags: Vec::new(),
            name: "HostVG".parse().unwrap(),
            size: 0,
            free: 0,
            missing_pvs: 0,
            volumes: volumes.iter().map(volume).collect(),
        }
    }

    fn request(layer: &str) -> Request {
        let cmdline = format!("imgbased.layer={layer}");
        cmdline::parse(cmdline.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn an_unknown_layer_is_answered_with_those_that_there_are() {
        let group = group(&[
            ("Base-0".into(), Role::Base),
            ("Base-0.1".into(), Role::Layer),
            ("Base-0.2".into(), Role::Incomplete),
            ("Config".into(), Role::Volume),
        ]);
        assert_eq!(find(&request("Base-0.1"), &group).unwrap(), Role::Layer);
        assert_eq!(find(&request("Base-0"), &group).unwrap(), Role::Base);
        let message = |layer: &str| find(&request(layer), &group).unwrap_err().to_string();
        assert_eq!(
            message("Base-9.9"),
            "no layer Base-9.9 in HostVG; there are: Base-0 Base-0.1"
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
