//! The only code that spells lvm2 arguments and reads its reports and its metadata.

mod config;
pub mod disk;
mod report;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::model::layout::{Group, maker, tag};
use crate::model::name::{LvName, VgName, VgUuid};
use crate::sys::cmd::Cmd;
use crate::sys::process::Process;
use report::Reader;

/// The columns of the one report that everything is read from, in the order in which [`Reader`] takes
/// them: of the group, of its volumes, and what only the pool has, with which lvm2 takes a fifth longer.
/// The name of a profile comes last, since it is a file's and can have any character.
const GROUP_COLUMNS: &str = "vg_name,vg_uuid,vg_tags,vg_size,vg_free,vg_missing_pv_count";
const VOLUME_COLUMNS: &str = "lv_name,lv_tags,lv_size,lv_attr,data_percent,metadata_percent";
const POOL_COLUMNS: &str = "lv_metadata_size,chunk_size,seg_monitor,lv_profile";

/// Between two columns. No name, tag or number of lvm2 has it.
const SEPARATOR: char = '|';

/// How lvm2 checks a pool before it activates it. After a power cut the pool can have leaked a few
/// blocks, which costs nothing, but fails the whole check; and on a large pool that takes minutes.
const POOL_CHECK: &str =
    "global/thin_check_options=[\"-q\",\"--clear-needs-check-flag\",\"--skip-mappings\"]";

/// The same before thin-provisioning-tools 1.0, which clears the flag after a whole check only.
const OLD_POOL_CHECK: &str = "global/thin_check_options=[\"-q\",\"--skip-mappings\"]";

/// The check that lvm2 makes by itself.
const WHOLE_POOL_CHECK: &str = "global/thin_check_options=[\"-q\",\"--clear-needs-check-flag\"]";

/// The lvm profile of our pools, which the package installs: when they are extended.
pub const PROFILE: &str = "imgbased";

const AT_BOOT: [&str; 4] = ["--yes", "--sysinit", "-K", "-ay"];

/// Whether `thin_check(8)` is older than 1.0.
fn has_old_check() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let version = Cmd::new("thin_check").arg("--version").run();
        version.is_ok_and(|version| version.starts_with("0."))
    })
}

/// The tags of a volume or group that this process is making. An incomplete volume without a maker is one
/// that was interrupted.
fn making() -> &'static [String; 2] {
    static TAGS: OnceLock<[String; 2]> = OnceLock::new();
    TAGS.get_or_init(|| {
        let this = Process::this().map_or_else(|_| String::new(), |this| this.to_string());
        [tag::INCOMPLETE.to_owned(), format!("{}{this}", tag::MAKER)]
    })
}

/// Adds those tags, or takes them off.
fn with_making(mut cmd: Cmd, option: &str) -> Cmd {
    for tag in making() {
        cmd = cmd.args([option, tag]);
    }
    cmd
}

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

/// A physical volume, and the group that it belongs to.
pub struct PhysicalVolume {
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
        if self.has_active_pool() {
            return self.lvm(command);
        }
        let check = if has_old_check() {
            OLD_POOL_CHECK
        } else {
            POOL_CHECK
        };
        self.lvm(command).args(["--config", check])
    }

    /// Whether device-mapper has a thin pool of the group, which lvm2 calls GROUP-POOL-tpool.
    fn has_active_pool(&self) -> bool {
        let prefix = self.vg.dm_prefix();
        // A second hyphen would belong to the name of another group.
        let is_pool = |name: &str| {
            let lv = name.trim_end().strip_prefix(&prefix);
            lv.is_some_and(|lv| lv.ends_with("-tpool") && !lv.starts_with('-'))
        };
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let mut names =
            devices.filter_map(|device| fs::read_to_string(device.path().join("dm/name")).ok());
        names.any(|name| is_pool(&name))
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
    pub fn locate(&self, what: &str) -> Result<Located> {
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

    /// The way out where a power cut left a volume that lvm2 has queued to be made, and device-mapper
    /// has made already: lvm2 tries again and fails, whatever it is asked to do with the pool. Deletes
    /// what device-mapper has; lvm2 can then make it, or remove it. Nothing if that is not the case.
    ///
    /// Only for a volume that was never finished: what is deleted is lost.
    pub fn unmake(&self, lv: &LvName, pool: &LvName) -> Result<Option<Cmd>> {
        let ask = |column: &str, lv: &LvName| -> Result<u64> {
            let output = self
                .reporting("lvs")
                .args(["--noheadings", "-o", column])
                .arg(self.full_name(lv))
                .run()?;
            let number = output.trim().parse();
            number.with_context(|| format!("unexpected {column} from lvm2: {output:?}"))
        };
        let pool_device = format!("{}-tpool", self.vg.dm_name(pool)?);
        let status = Cmd::new("dmsetup")
            .args(["status", "--noflush"])
            .arg(&pool_device)
            .run()?;
        // linux/Documentation/admin-guide/device-mapper/thin-provisioning.rst, "Status".
        let made = status
            .split_whitespace()
            .nth(3)
            .and_then(|id| id.parse::<u64>().ok());
        let made = made.with_context(|| format!("unexpected output of dmsetup: {status:?}"))?;
        // lvm2 counts a change before it is made, device-mapper when it is done.
        if ask("transaction_id", pool)? != made + 1 {
            return Ok(None);
        }
        let message = format!("delete {}", ask("thin_id", lv)?);
        Ok(Some(Cmd::new("dmsetup").args([
            "message",
            &pool_device,
            "0",
            &message,
        ])))
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
    pub fn all_disks(&self) -> Result<Vec<PhysicalVolume>> {
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
            (!vg.is_empty()).then(|| PhysicalVolume {
                device: device.into(),
                vg,
                vgid,
            })
        };
        Ok(output.lines().filter_map(disk).collect())
    }

    /// The group as it is when the devices file hides nothing.
    pub fn load_unhidden(&self) -> Result<Option<Group>> {
        let all = Self {
            devices_file: Some(""),
            ..self.clone()
        };
        all.load()
    }

    /// Enters all disks of the group in the devices file (lvmdevices(8)).
    pub fn enter_devices(&self) -> Cmd {
        self.lvm("vgimportdevices").arg(self.vg.as_str())
    }

    /// How full a pool with the profile `profile` is when it is extended, in percent; 100 for never.
    pub fn auto_extension(&self, profile: &str) -> Result<u64> {
        let mut cmd = self
            .reporting("lvmconfig")
            .args(["--typeconfig", "full", "--valuesonly"]);
        if !profile.is_empty() {
            cmd = cmd.args(["--metadataprofile", profile]);
        }
        let output = cmd
            .arg("activation/thin_pool_autoextend_threshold")
            .run()
            .context("cannot ask when the pool is extended")?;
        output
            .trim()
            .parse()
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

    /// What went wrong when lvm2 could not activate a volume at boot, and what to do, from what lvm2
    /// wrote: its exit status is the same for all. Nothing if it is none of the known cases.
    pub fn explain_activation(&self, lv: &LvName, error: &str) -> Option<String> {
        let vg = &self.vg;
        // Texts of `_thin_pool_node_send_messages`, `_pool_callback` and `_lv_activate` in lvm2, and of
        // ENODATA, with which dm-thin answers for a device that it does not have.
        let has = |text: &str| error.contains(text);
        let text = if has("transaction_id is") {
            format!(
                "the thin pool and the LVM metadata of {vg} are not of the same transaction; see \"Metadata check and repair\" in lvmthin(7)"
            )
        } else if has("Manual repair required") {
            format!(
                "the check of the thin pool failed; deactivate {vg} and repair the pool with lvconvert --repair, see lvmthin(7)"
            )
        } else if has("No data available") {
            format!(
                "{vg}/{lv} is in the LVM metadata, but was never made in the pool; boot another layer and run imgbased-helper check --repair"
            )
        } else if has("Refusing activation of partial LV") {
            format!(
                "{vg}/{lv} needs a disk that is missing; attach it, or see lvchange --activationmode partial"
            )
        } else {
            return None;
        };
        Some(text)
    }

    /// Activates one volume while the initramfs runs: no monitoring, no lock files, and in spite
    /// of its activation-skip flag.
    pub fn activate_at_boot(&self, lv: &LvName) -> Cmd {
        self.activating("lvchange")
            .args(AT_BOOT)
            .arg(self.full_name(lv))
    }

    /// The same after a whole check of the pool, for when [`Lvm::needs_check`] says so.
    pub fn activate_checked_at_boot(&self, lv: &LvName) -> Cmd {
        self.lvm("lvchange")
            .args(["--config", WHOLE_POOL_CHECK])
            .args(AT_BOOT)
            .arg(self.full_name(lv))
    }

    /// Whether the kernel refuses to write to an active pool before it was checked as a whole. Where
    /// activating it clears that flag, it is not set.
    pub fn needs_check(&self, pool: &str) -> Result<bool> {
        if !has_old_check() {
            return Ok(false);
        }
        let device = format!("{}-tpool", self.vg.dm_name(&pool.parse()?)?);
        let status = Cmd::new("dmsetup").args(["status", "--noflush", &device]);
        Ok(status.run()?.contains("needs_check"))
    }

    pub fn activate(&self, lv: &LvName) -> Cmd {
        self.activating("lvchange")
            .args(["-K", "-ay"])
            .arg(self.full_name(lv))
    }

    pub fn deactivate(&self, lv: &LvName) -> Cmd {
        self.lvm("lvchange").arg("-an").arg(self.full_name(lv))
    }

    pub fn remove(&self, lv: &LvName) -> Cmd {
        self.activating("lvremove")
            .arg("--yes")
            .arg(self.full_name(lv))
    }

    /// Creates the group on `devices`, which must carry no signature, marked as incomplete.
    pub fn create_group(&self, devices: &[PathBuf]) -> Cmd {
        with_making(self.lvm("vgcreate").arg("--yes"), "--addtag")
            .arg(self.vg.as_str())
            .args(devices)
    }

    /// Makes the group one of ours: the commit of its creation.
    pub fn complete_group(&self) -> Cmd {
        with_making(self.lvm("vgchange"), "--deltag")
            .args(["--addtag", tag::VG])
            .arg(self.vg.as_str())
    }

    pub fn remove_group(&self) -> Cmd {
        self.lvm("vgremove").args(["--yes", self.vg.as_str()])
    }

    pub fn forget_devices(&self, devices: &[PathBuf]) -> Cmd {
        self.lvm("pvremove").arg("--yes").args(devices)
    }

    /// Creates the thin pool in `percent` of the group's free space, with metadata and chunks of
    /// these sizes in bytes. The rest is left for the pool's growth and repair.
    pub fn create_pool(&self, pool: &LvName, percent: u8, metadata: u64, chunk: u64) -> Cmd {
        self.lvm("lvcreate")
            .args(["--yes", "--type", "thin-pool"])
            .args(["--extents", &format!("{percent}%FREE")])
            .args(["--poolmetadatasize", &format!("{metadata}b")])
            .args(["--chunksize", &format!("{chunk}b")])
            .args(["--poolmetadataspare", "y"])
            // A full pool is to fail writes at once. lvcreate 2.03.31 refuses --errorwhenfull.
            .args(["--config", "activation/error_when_full=1"])
            .args(["--discards", "passdown", "--zero", "y"])
            .args(["--metadataprofile", PROFILE, "--monitor", "y"])
            .args(["--addtag", tag::POOL])
            .args(["--name", pool.as_str(), self.vg.as_str()])
    }

    /// Creates and activates a thin volume of `size` bytes, marked as incomplete. `skip` keeps it
    /// from being activated with the group, as bases and layers have to be.
    pub fn create_thin(&self, lv: &LvName, pool: &LvName, size: u64, skip: bool) -> Cmd {
        let create = self
            .activating("lvcreate")
            .args(["--yes", "--type", "thin"])
            .args(["--virtualsize", &format!("{size}b")])
            .args(["--thinpool", pool.as_str()])
            .args([
                "--setactivationskip",
                if skip { "y" } else { "n" },
                "-K",
                "-ay",
            ]);
        with_making(create, "--addtag").args(["--name", lv.as_str(), self.vg.as_str()])
    }

    /// Creates and activates a writable thin snapshot, marked as incomplete; as a layer of the base
    /// `of`, if there is one. It carries the activation-skip flag.
    pub fn create_snapshot(&self, new: &LvName, origin: &LvName, of: Option<&LvName>) -> Cmd {
        let cmd = self
            .activating("lvcreate")
            .args(["--yes", "--snapshot", "--permission", "rw"])
            .args(["--setactivationskip", "y", "-K", "-ay"]);
        let cmd = match of {
            Some(base) => cmd.args(["--addtag", &format!("{}{base}", tag::OF)]),
            None => cmd,
        };
        with_making(cmd, "--addtag")
            .args(["--name", new.as_str()])
            .arg(self.full_name(origin))
    }

    /// Makes a volume larger, to this size in bytes.
    pub fn extend(&self, lv: &LvName, size: u64) -> Cmd {
        self.lvm("lvextend")
            .args(["--size", &format!("{size}b")])
            .arg(self.full_name(lv))
    }

    /// Deactivates a volume and makes it what `tags` say: the commit of its creation.
    pub fn complete(&self, lv: &LvName, tags: &[String]) -> Cmd {
        let mut cmd = with_making(self.lvm("lvchange").arg("-an"), "--deltag");
        for tag in tags {
            cmd = cmd.args(["--addtag", tag]);
        }
        if tags.iter().any(|t| t == tag::BASE) {
            cmd = cmd.args(["--permission", "r"]);
        }
        cmd.arg(self.full_name(lv))
    }

    /// The same for a volume that stays active.
    pub fn complete_active(&self, lv: &LvName, tag: &str) -> Cmd {
        with_making(self.lvm("lvchange"), "--deltag")
            .args(["--addtag", tag])
            .arg(self.full_name(lv))
    }

    /// Marks a volume or, without one, the group.
    pub fn add_tag(&self, lv: Option<&LvName>, tag: &str) -> Cmd {
        self.change_tag(lv, "--addtag", tag)
    }

    /// Takes such a mark off.
    pub fn remove_tag(&self, lv: Option<&LvName>, tag: &str) -> Cmd {
        self.change_tag(lv, "--deltag", tag)
    }

    fn change_tag(&self, lv: Option<&LvName>, option: &str, tag: &str) -> Cmd {
        let (command, name) = match lv {
            Some(lv) => ("lvchange", self.full_name(lv)),
            None => ("vgchange", self.vg.to_string()),
        };
        self.lvm(command).args([option, tag]).arg(name)
    }

    /// Changes the tags of a volume, in one commit.
    pub fn retag(&self, lv: &LvName, remove: &[&str], add: Option<&str>) -> Cmd {
        let mut cmd = self.lvm("lvchange");
        if let Some(tag) = add {
            cmd = cmd.args(["--addtag", tag]);
        }
        for tag in remove {
            cmd = cmd.args(["--deltag", tag]);
        }
        cmd.arg(self.full_name(lv))
    }

    pub fn make_read_only(&self, lv: &LvName) -> Cmd {
        self.lvm("lvchange")
            .args(["--permission", "r"])
            .arg(self.full_name(lv))
    }

    pub fn skip_activation(&self, lv: &LvName) -> Cmd {
        self.lvm("lvchange")
            .args(["--setactivationskip", "y"])
            .arg(self.full_name(lv))
    }

    /// Has dmeventd(8) extend a pool before it is full, as our profile says.
    pub fn auto_extend(&self, pool: &LvName) -> Cmd {
        self.lvm("lvchange")
            .args(["--metadataprofile", PROFILE, "--monitor", "y"])
            .arg(self.full_name(pool))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The arguments that follow an option.
    fn values(cmd: &Cmd, option: &str) -> Vec<String> {
        let line = cmd.to_string();
        let words: Vec<&str> = line.split(' ').collect();
        let pairs = words.windows(2).filter(|pair| pair[0] == option);
        pairs.map(|pair| pair[1].to_owned()).collect()
    }

    #[test]
    fn what_is_made_names_its_maker_until_its_commit() {
        let lvm = Lvm::new("HostVG".parse().unwrap());
        let [name, base, pool] = ["Base-0.1", "Base-0", "Pool"].map(|n| n.parse().unwrap());
        let of = format!("{}Base-0", tag::OF);
        let layer = [tag::LAYER.to_owned()];
        for (create, commit, of) in [
            (
                lvm.create_snapshot(&name, &base, Some(&base)),
                lvm.complete(&name, &layer),
                Some(&of),
            ),
            (
                lvm.create_thin(&name, &pool, 1 << 20, true),
                lvm.complete_active(&name, tag::VOLUME),
                None,
            ),
            (lvm.create_group(&[]), lvm.complete_group(), None),
        ] {
            let mut born = values(&create, "--addtag");
            born.retain(|tag| Some(tag) != of);
            assert_eq!(values(&commit, "--deltag"), born);
            assert_eq!(values(&commit, "--addtag").len(), 1, "{commit}");
            assert_eq!(born[0], tag::INCOMPLETE);
            assert_eq!(living_maker(&born), Some(Process::this().unwrap()));
            assert_eq!(living_maker(&born[..1]), None);
        }
        for gone in ["", "0-1:1:1", "x"] {
            assert_eq!(living_maker(&[format!("{}{gone}", tag::MAKER)]), None);
        }
    }
}
