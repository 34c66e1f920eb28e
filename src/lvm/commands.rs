//! The commands of lvm2 that change a group. Building one changes nothing, and asks lvm2 nothing.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::Result;

use super::Lvm;
use crate::model::layout::tag;
use crate::model::name::LvName;
use crate::model::pool::PROFILE;
use crate::sys::cmd::Cmd;
use crate::sys::process::Process;

/// The check that lvm2 makes by itself.
const WHOLE_POOL_CHECK: &str = "global/thin_check_options=[\"-q\",\"--clear-needs-check-flag\"]";

/// What is unfinished is in no backup of the group's metadata: the commit writes one, or what removes it again.
const NO_BACKUP: [&str; 2] = ["--autobackup", "n"];

const AT_BOOT: [&str; 4] = ["--yes", "--sysinit", "-K", "-ay"];

/// How large a new thin pool is.
#[derive(Clone, Copy)]
pub enum PoolSize {
    /// Of the group's free space.
    Percent(u8),
    Bytes(u64),
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

impl Lvm {
    /// Activates these volumes while the initramfs runs: no monitoring, no lock files, and in spite
    /// of their activation-skip flags.
    pub fn activate_at_boot(&self, lvs: &[LvName]) -> Cmd {
        self.activating("lvchange")
            .args(AT_BOOT)
            .args(lvs.iter().map(|lv| self.full_name(lv)))
    }

    /// The same after a whole check of the pool, for when [`Lvm::needs_check`] says so.
    pub fn activate_checked_at_boot(&self, lvs: &[LvName]) -> Cmd {
        self.lvm("lvchange")
            .args(["--config", WHOLE_POOL_CHECK])
            .args(AT_BOOT)
            .args(lvs.iter().map(|lv| self.full_name(lv)))
    }

    pub fn activate(&self, lv: &LvName) -> Cmd {
        self.activating("lvchange")
            .args(["-K", "-ay"])
            .arg(self.full_name(lv))
    }

    pub fn deactivate(&self, lv: &LvName) -> Cmd {
        self.lvm("lvchange").arg("-an").arg(self.full_name(lv))
    }

    /// Takes a volume that nobody uses out of device-mapper, as deactivating it does, without a look at the group.
    pub fn remove_device(&self, lv: &LvName) -> Result<Cmd> {
        let name = self.vg.dm_name(lv)?;
        // As lvm2 does, where a rule of udev has the device open.
        Ok(Cmd::new("dmsetup").args(["remove", "--retry", &name]))
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
    pub fn commit_group(&self) -> Cmd {
        with_making(self.lvm("vgchange"), "--deltag")
            .args(["--addtag", tag::VG])
            .arg(self.vg.as_str())
    }

    pub fn remove_group(&self) -> Cmd {
        self.lvm("vgremove").args(["--yes", self.vg.as_str()])
    }

    pub fn deactivate_group(&self) -> Cmd {
        self.lvm("vgchange").args(["-an", self.vg.as_str()])
    }

    pub fn forget_devices(&self, devices: &[PathBuf]) -> Cmd {
        self.lvm("pvremove").arg("--yes").args(devices)
    }

    /// Creates the thin pool, with data, metadata and chunks of these sizes in bytes. The rest of the group is left
    /// for the pool's growth and repair.
    pub fn create_pool(&self, pool: &LvName, data: PoolSize, metadata: u64, chunk: u64) -> Cmd {
        let data = match data {
            PoolSize::Percent(percent) => ["--extents".to_owned(), format!("{percent}%FREE")],
            PoolSize::Bytes(bytes) => ["--size".to_owned(), format!("{bytes}b")],
        };
        self.lvm("lvcreate")
            .args(["--yes", "--type", "thin-pool"])
            .args(data)
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
            .args(NO_BACKUP)
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
            .args(NO_BACKUP)
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
    pub fn commit(&self, lv: &LvName, tags: &[String]) -> Cmd {
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
    pub fn commit_active(&self, lv: &LvName, tags: &[String]) -> Cmd {
        let mut cmd = with_making(self.lvm("lvchange"), "--deltag");
        for tag in tags {
            cmd = cmd.args(["--addtag", tag]);
        }
        cmd.arg(self.full_name(lv))
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

    /// The same with several tags.
    pub fn exchange_tags(&self, lv: &LvName, remove: &[String], add: &[String]) -> Cmd {
        let mut cmd = self.lvm("lvchange");
        for (option, tags) in [("--addtag", add), ("--deltag", remove)] {
            for tag in tags {
                cmd = cmd.args([option, tag]);
            }
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

    /// Enters all disks of the group in the devices file (lvmdevices(8)).
    pub fn import_devices(&self) -> Cmd {
        self.lvm("vgimportdevices").arg(self.vg.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvm::living_maker;

    fn name(text: &str) -> LvName {
        text.parse().unwrap()
    }

    /// The command without what depends on the machine: how a pool is checked before it is activated, and the
    /// process that makes something.
    fn argv(cmd: &Cmd) -> String {
        let line = cmd.to_string();
        let mut words = line.split(' ').peekable();
        let mut kept = Vec::new();
        while let Some(word) = words.next() {
            match word {
                "--config"
                    if words
                        .peek()
                        .is_some_and(|w| w.contains("thin_check_options")) =>
                {
                    words.next();
                }
                _ if word.starts_with(tag::MAKER) => kept.push(tag::MAKER),
                _ => kept.push(word),
            }
        }
        kept.join(" ")
    }

    #[test]
    fn what_makes_volumes_and_groups_is_what_lvm2_takes() {
        let lvm = Lvm::new("HostVG".parse().unwrap());
        let [layer, base, pool] = ["Base-0.1", "Base-0", "Pool"].map(name);
        let disk = [PathBuf::from("/dev/vdc3")];
        let making = "--addtag imgbased:incomplete --addtag imgbased:maker=";
        let made = "--deltag imgbased:incomplete --deltag imgbased:maker=";
        for (cmd, expected) in [
            (
                lvm.create_group(&disk),
                format!("lvm vgcreate --yes {making} HostVG /dev/vdc3"),
            ),
            (
                lvm.commit_group(),
                format!("lvm vgchange {made} --addtag imgbased:vg HostVG"),
            ),
            (lvm.remove_group(), "lvm vgremove --yes HostVG".to_owned()),
            (
                lvm.deactivate_group(),
                "lvm vgchange -an HostVG".to_owned(),
            ),
            (
                lvm.forget_devices(&disk),
                "lvm pvremove --yes /dev/vdc3".to_owned(),
            ),
            (
                lvm.create_pool(&pool, PoolSize::Percent(90), 1 << 20, 1 << 16),
                "lvm lvcreate --yes --type thin-pool --extents 90%FREE --poolmetadatasize 1048576b --chunksize 65536b \
                 --poolmetadataspare y --config activation/error_when_full=1 --discards passdown --zero y \
                 --metadataprofile imgbased --monitor y --addtag imgbased:pool --name Pool HostVG"
                    .to_owned(),
            ),
            (
                lvm.create_thin(&base, &pool, 1 << 30, true),
                format!(
                    "lvm lvcreate --yes --type thin --autobackup n --virtualsize 1073741824b --thinpool Pool --setactivationskip y -K \
                     -ay {making} --name Base-0 HostVG"
                ),
            ),
            (
                lvm.create_snapshot(&layer, &base, Some(&base)),
                format!(
                    "lvm lvcreate --yes --snapshot --permission rw --autobackup n --setactivationskip y -K -ay --addtag \
                     imgbased:of=Base-0 {making} --name Base-0.1 HostVG/Base-0"
                ),
            ),
            (
                lvm.create_snapshot(&base, &layer, None),
                format!(
                    "lvm lvcreate --yes --snapshot --permission rw --autobackup n --setactivationskip y -K -ay {making} --name \
                     Base-0 HostVG/Base-0.1"
                ),
            ),
            (
                lvm.extend(&base, 1 << 31),
                "lvm lvextend --size 2147483648b HostVG/Base-0".to_owned(),
            ),
            (
                lvm.commit(&layer, &[tag::LAYER.to_owned()]),
                format!("lvm lvchange -an {made} --addtag imgbased:layer HostVG/Base-0.1"),
            ),
            (
                lvm.commit(&base, &[tag::BASE.to_owned()]),
                format!("lvm lvchange -an {made} --addtag imgbased:base --permission r HostVG/Base-0"),
            ),
            (
                lvm.commit_active(&base, &[tag::VOLUME.to_owned()]),
                format!("lvm lvchange {made} --addtag imgbased:volume HostVG/Base-0"),
            ),
        ] {
            assert_eq!(argv(&cmd), expected);
        }
    }

    #[test]
    fn what_changes_volumes_is_what_lvm2_takes() {
        let lvm = Lvm::new("HostVG".parse().unwrap());
        let [layer, base, pool] = ["Base-0.1", "Base-0", "Pool"].map(name);
        for (cmd, expected) in [
            (
                lvm.activate_at_boot(&[layer.clone(), base.clone()]),
                "lvm lvchange --yes --sysinit -K -ay HostVG/Base-0.1 HostVG/Base-0",
            ),
            (
                lvm.activate_checked_at_boot(std::slice::from_ref(&layer)),
                "lvm lvchange --yes --sysinit -K -ay HostVG/Base-0.1",
            ),
            (lvm.activate(&layer), "lvm lvchange -K -ay HostVG/Base-0.1"),
            (lvm.deactivate(&layer), "lvm lvchange -an HostVG/Base-0.1"),
            (lvm.remove(&layer), "lvm lvremove --yes HostVG/Base-0.1"),
            (
                lvm.add_tag(Some(&pool), tag::POOL),
                "lvm lvchange --addtag imgbased:pool HostVG/Pool",
            ),
            (
                lvm.remove_tag(None, tag::VG),
                "lvm vgchange --deltag imgbased:vg HostVG",
            ),
            (
                lvm.retag(&layer, &["a", "b"], Some("c")),
                "lvm lvchange --addtag c --deltag a --deltag b HostVG/Base-0.1",
            ),
            (
                lvm.exchange_tags(&layer, &["a".to_owned()], &["b".to_owned(), "c".to_owned()]),
                "lvm lvchange --addtag b --addtag c --deltag a HostVG/Base-0.1",
            ),
            (
                lvm.make_read_only(&base),
                "lvm lvchange --permission r HostVG/Base-0",
            ),
            (
                lvm.skip_activation(&base),
                "lvm lvchange --setactivationskip y HostVG/Base-0",
            ),
            (
                lvm.auto_extend(&pool),
                "lvm lvchange --metadataprofile imgbased --monitor y HostVG/Pool",
            ),
            (lvm.import_devices(), "lvm vgimportdevices HostVG"),
        ] {
            assert_eq!(argv(&cmd), expected);
        }
        let there = Lvm::on_devices("HostVG".parse().unwrap(), vec!["/dev/vdc3".into()]);
        assert_eq!(
            there.deactivate(&base).to_string(),
            "lvm lvchange --devices /dev/vdc3 -an HostVG/Base-0"
        );
    }

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
                lvm.commit(&name, &layer),
                Some(&of),
            ),
            (
                lvm.create_thin(&name, &pool, 1 << 20, true),
                lvm.commit_active(&name, &[tag::VOLUME.to_owned()]),
                None,
            ),
            (lvm.create_group(&[]), lvm.commit_group(), None),
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
