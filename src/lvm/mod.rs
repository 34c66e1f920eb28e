//! The only code that spells lvm2 arguments and reads its reports and its metadata.

mod commands;
mod config;
pub mod disk;
mod explain;
mod report;
mod text;
mod thin;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::model::layout::{Group, maker};
use crate::model::name::{DEFAULT_VG, LvName, VgName, VgUuid};
use crate::sys::cmd::Cmd;
use crate::sys::process::Process;
pub use commands::PoolSize;
pub use explain::is_failed_check;
use report::Reader;
pub use thin::PoolStatus;

/// The columns of the one report that everything is read from, in the order in which [`Reader`] takes
/// them: of the group, of its volumes, and what only the pool has, with which lvm2 takes a fifth longer.
/// The name of a profile comes last, since it is a file's and can have any character.
const GROUP_COLUMNS: &str = "vg_name,vg_uuid,vg_tags,vg_size,vg_free,vg_missing_pv_count";
const VOLUME_COLUMNS: &str = "lv_name,lv_tags,lv_size,lv_attr,data_percent,metadata_percent";
const POOL_COLUMNS: &str = "lv_metadata_size,chunk_size,seg_monitor,transaction_id,lv_profile";

/// Between two columns. No name, tag or number of lvm2 has it.
const SEPARATOR: char = '|';

/// How lvm2 checks a pool before it activates it. After a power cut the pool can have leaked a few
/// blocks, which costs nothing, but fails the whole check; and on a large pool that takes minutes. The flag by
/// which the kernel asks for a whole check is not cleared by such a look.
const POOL_CHECK: &str = "global/thin_check_options=[\"-q\",\"--skip-mappings\"]";

/// The process that makes the volume or group with these tags, if it has not ended.
pub fn living_maker(tags: &[String]) -> Option<Process> {
    let maker: Process = maker(tags)?.parse().ok()?;
    maker.lives().then_some(maker)
}

/// How lvm2 is called for one volume group.
#[derive(Clone, Debug)]
pub struct Lvm {
    vg: VgName,
    /// No other group of that name counts, if this is known.
    uuid: Option<VgUuid>,
    /// The physical volumes to look at; all that LVM knows of if there are none.
    devices: OnceLock<Vec<PathBuf>>,
    /// Another devices file, or none if it is empty.
    devices_file: Option<&'static str>,
}

/// A thin volume that was found by another name.
pub struct Located {
    pub vg: VgName,
    pub lv: LvName,
    pub pool: LvName,
}

/// When dmeventd(8) extends a pool, and by how much (lvm.conf(5), "activation").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoExtension {
    /// How full the pool is then, in percent; 100 for never.
    pub threshold: u64,
    /// The part of its size that it gets at least, in percent. lvm2 extends by all of that or not at all.
    pub percent: u64,
}

const AUTO_EXTENSION: [&str; 2] = [
    "thin_pool_autoextend_threshold",
    "thin_pool_autoextend_percent",
];

impl AutoExtension {
    /// Of what lvmconfig(8) prints, a line for each setting. Only after lvm2 2.03.16 it can be asked for the values alone.
    fn parse(lines: &str) -> Option<Self> {
        let value = |name: &str| {
            let mut settings = lines.lines().filter_map(|line| line.trim().split_once('='));
            settings.find(|(key, _)| *key == name)?.1.parse().ok()
        };
        let [threshold, percent] = AUTO_EXTENSION.map(value);
        Some(Self {
            threshold: threshold?,
            percent: percent?,
        })
    }
}

/// A disk of a volume group, as lvm2 reports it.
pub struct GroupDisk {
    pub device: PathBuf,
    pub vg: String,
    /// The UUID of that group.
    pub vgid: String,
}

impl Lvm {
    pub fn new(vg: VgName) -> Self {
        Self {
            vg,
            uuid: None,
            devices: OnceLock::new(),
            devices_file: None,
        }
    }

    /// The same for the group of that name with this UUID. Where there are several, all but the first command
    /// look at its disks only.
    pub fn of_group(self, uuid: Option<VgUuid>) -> Self {
        Self { uuid, ..self }
    }

    /// Looks at these devices only, whatever the devices file says (`--devices`, lvm2 2.03.12).
    pub fn on_devices(vg: VgName, devices: Vec<PathBuf>) -> Self {
        Self {
            vg,
            uuid: None,
            devices: devices.into(),
            devices_file: None,
        }
    }

    pub fn vg(&self) -> &VgName {
        &self.vg
    }

    fn lvm(&self, command: &str) -> Cmd {
        let mut cmd = Cmd::new("lvm").arg(command);
        for device in self.devices.get().into_iter().flatten() {
            cmd = cmd.arg("--devices").arg(device);
        }
        // lvm2 takes one of the two.
        if let (Some(file), None) = (self.devices_file, self.devices.get()) {
            cmd = cmd.args(["--devicesfile", file]);
        }
        cmd
    }

    /// A command whose output is read.
    fn reporting(&self, command: &str) -> Cmd {
        // lvm2 reads its configuration twice more for a --config.
        if config::sets_nothing() {
            return self.lvm(command);
        }
        self.lvm(command).args(["--config", config::REPORT])
    }

    /// A command that can activate the pool.
    fn activating(&self, command: &str) -> Cmd {
        // A pool is checked only when it is activated.
        if self.active_pool().is_some() {
            return self.lvm(command);
        }
        self.lvm(command).args(["--config", POOL_CHECK])
    }

    /// The thin pool of the group that device-mapper has, which lvm2 calls GROUP-POOL-tpool.
    fn active_pool(&self) -> Option<String> {
        let prefix = self.vg.dm_prefix();
        // A second hyphen would belong to the name of another group.
        let is_pool = |name: &str| {
            let lv = name.trim_end().strip_prefix(&prefix);
            lv.is_some_and(|lv| lv.ends_with("-tpool") && !lv.starts_with('-'))
        };
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let mut names =
            devices.filter_map(|device| fs::read_to_string(device.path().join("dm/name")).ok());
        let name = names.find(|name| is_pool(name))?;
        Some(name.trim_end().to_owned())
    }

    fn full_name(&self, lv: &LvName) -> String {
        format!("{}/{lv}", self.vg)
    }

    /// The device node of a volume. It exists while the volume is active.
    pub fn device(&self, lv: &LvName) -> Result<PathBuf> {
        Ok(Path::new("/dev/mapper").join(self.vg.dm_name(lv)?))
    }

    /// Reads the group in one call of lvm2; nothing if there is no such group.
    pub fn load(&self) -> Result<Option<Group>> {
        let columns = [GROUP_COLUMNS, VOLUME_COLUMNS, POOL_COLUMNS];
        self.load_columns(&columns, || ()).map(|(group, ())| group)
    }

    /// The same, with what device-mapper says of the pool meanwhile, if that is active.
    pub fn load_with_pool(&self) -> Result<(Option<Group>, Option<PoolStatus>)> {
        let columns = [GROUP_COLUMNS, VOLUME_COLUMNS, POOL_COLUMNS];
        self.load_columns(&columns, || self.active_pool_status())
    }

    /// The same for showing it: without what only the pool has. Calls `meanwhile` while lvm2 reads.
    pub fn load_to_show<T>(&self, meanwhile: impl FnOnce() -> T) -> Result<(Option<Group>, T)> {
        self.load_columns(&[GROUP_COLUMNS, VOLUME_COLUMNS], meanwhile)
    }

    fn load_columns<T>(
        &self,
        columns: &[&str],
        meanwhile: impl FnOnce() -> T,
    ) -> Result<(Option<Group>, T)> {
        // Selected rather than named, since a missing group that is named is an error, which only
        // its text tells from others.
        let (group, seen) = self.report(&columns.join(","), "lv_time,lv_name", meanwhile)?;
        if group.is_some() {
            return Ok((group, seen));
        }
        // A group without volumes has no line in a report with columns of volumes.
        self.report(GROUP_COLUMNS, "vg_name", || seen)
    }

    /// Which thin volume `what` is: a device, or GROUP/VOLUME. Refuses one that is not thin.
    pub fn find_thin(&self, what: &str) -> Result<Located> {
        let output = self
            .reporting("lvs")
            .args([
                "--noheadings",
                "--separator",
                "/",
                "-o",
                "vg_name,lv_name,pool_lv",
                what,
            ])
            .run()
            .with_context(|| format!("cannot find the volume {what}"))?;
        let fields: Vec<&str> = output.trim().split('/').collect();
        match fields[..] {
            [_, _, ""] => {
                bail!("{what} is not a thin volume; only of one a snapshot costs nothing")
            }
            [vg, lv, pool] => Ok(Located {
                vg: vg.parse()?,
                lv: lv.parse()?,
                pool: pool.parse()?,
            }),
            _ => bail!("unexpected report from lvm2: {output:?}"),
        }
    }

    /// The names of all groups with this tag.
    pub fn groups_with(tag: &str) -> Result<Vec<VgName>> {
        let output = Self::new(DEFAULT_VG.parse()?)
            .reporting("vgs")
            .args(["--noheadings", "-o", "vg_name"])
            .args(["--select", &format!("vg_tags={tag}")])
            .run()
            .context("cannot read the volume groups")?;
        output.lines().map(|line| line.trim().parse()).collect()
    }

    /// The disks of the group.
    pub fn disks(&self) -> Result<Vec<PathBuf>> {
        self.disks_with(&format!("vg_name={}", self.vg))
    }

    fn disks_with(&self, selection: &str) -> Result<Vec<PathBuf>> {
        let output = self
            .reporting("pvs")
            .args(["--noheadings", "-o", "pv_name"])
            .args(["--select", selection])
            .run()
            .context("cannot read the physical volumes")?;
        Ok(output.lines().map(|line| line.trim().into()).collect())
    }

    /// The disks of all groups, also of those that lvm2 does not show otherwise.
    pub fn all_disks(&self) -> Result<Vec<GroupDisk>> {
        let all = Self {
            devices_file: Some(""),
            ..Self::new(self.vg.clone())
        };
        let output = all
            .reporting("pvs")
            .args(["--foreign", "--noheadings", "--separator", "|"])
            .args(["-o", "vg_uuid,vg_name,pv_name"])
            .run()
            .context("cannot read the physical volumes")?;
        let disk = |line: &str| {
            let (vgid, rest) = line.trim().split_once('|')?;
            let (vg, device) = rest.split_once('|')?;
            let [vg, vgid] = [vg, vgid].map(str::to_owned);
            (!vg.is_empty()).then(|| GroupDisk {
                device: device.into(),
                vg,
                vgid,
            })
        };
        Ok(output.lines().filter_map(disk).collect())
    }

    /// The group as it is when the devices file hides nothing.
    pub fn load_without_devices_file(&self) -> Result<Option<Group>> {
        let all = Self {
            devices_file: Some(""),
            ..self.clone()
        };
        all.load()
    }

    /// How a pool with the profile `profile` is extended.
    pub fn auto_extension(&self, profile: &str) -> Result<AutoExtension> {
        let ask = |profile: &str| {
            let mut cmd = self.reporting("lvmconfig").args(["--typeconfig", "full"]);
            if !profile.is_empty() {
                cmd = cmd.args(["--metadataprofile", profile]);
            }
            cmd.args(AUTO_EXTENSION.map(|name| format!("activation/{name}")))
                .run()
        };
        let output = ask(profile).or_else(|error| {
            if profile.is_empty() {
                return Err(error);
            }
            // Its file can have gone with the package that brought it. What extends the pool does without, too.
            log::debug!("the profile {profile} of the pool is not used: {error:#}");
            ask("")
        });
        let output = output.context("cannot ask when the pool is extended")?;
        AutoExtension::parse(&output)
            .with_context(|| format!("unexpected output of lvmconfig: {output:?}"))
    }

    fn report<T>(
        &self,
        columns: &str,
        order: &str,
        meanwhile: impl FnOnce() -> T,
    ) -> Result<(Option<Group>, T)> {
        let mut reader = Reader::new(&self.vg, self.uuid.as_ref());
        let report = self
            .reporting("vgs")
            .args(["--noheadings", "--separator", &SEPARATOR.to_string()])
            .args(["--units", "b", "--nosuffix"])
            .args(["--select", &format!("vg_name={}", self.vg)])
            .args(["-o", columns, "-O", order])
            .start(Stdio::null(), Stdio::piped())?;
        let seen = meanwhile();
        report
            .lines(|line| reader.take(line))
            .context("cannot read the volume group")?;
        if let (Some(uuid), true) = (&self.uuid, reader.has_seen_others()) {
            // Set before, if it is read for the second time.
            let _ = self.devices.set(self.disks_of(uuid)?);
        }
        Ok((reader.group(), seen))
    }

    /// The disks of the group with this UUID: commands take names only.
    fn disks_of(&self, uuid: &VgUuid) -> Result<Vec<PathBuf>> {
        self.disks_with(&format!("vg_uuid={uuid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_pool_is_extended_is_read_of_the_lines_of_lvmconfig() {
        let wanted = AutoExtension {
            threshold: 80,
            percent: 5,
        };
        for (lines, expected) in [
            (
                "thin_pool_autoextend_threshold=80\nthin_pool_autoextend_percent=5\n",
                Some(wanted),
            ),
            (
                "\tthin_pool_autoextend_percent=5\n\tother=1\n\tthin_pool_autoextend_threshold=80\n",
                Some(wanted),
            ),
            ("thin_pool_autoextend_threshold=80\n", None),
            (
                "thin_pool_autoextend_threshold=x\nthin_pool_autoextend_percent=5\n",
                None,
            ),
            ("", None),
        ] {
            assert_eq!(AutoExtension::parse(lines), expected, "{lines:?}");
        }
    }
}
