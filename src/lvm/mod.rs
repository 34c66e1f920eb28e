//! The only code that spells lvm2 arguments and reads its reports.

mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::model::layout::{Group, tag};
use crate::model::name::{LvName, VgName};
use crate::sys::cmd::Cmd;

/// The columns of the one report that everything is read from.
const COLUMNS: &str = "vg_name,vg_size,vg_free,vg_missing_pv_count,\
    lv_name,lv_tags,lv_size,lv_layout,lv_active,data_percent,metadata_percent";

/// How lvm2 is called for one volume group.
#[derive(Clone, Debug)]
pub struct Lvm {
    vg: VgName,
    /// The physical volumes to look at; all that LVM knows of if there are none.
    devices: Vec<PathBuf>,
}

impl Lvm {
    pub fn new(vg: VgName) -> Self {
        Self {
            vg,
            devices: Vec::new(),
        }
    }

    /// Looks at these devices only, whatever the devices file says (`--devices`, lvm2 2.03.12).
    pub fn on_devices(vg: VgName, devices: Vec<PathBuf>) -> Self {
        Self { vg, devices }
    }

    pub fn vg(&self) -> &VgName {
        &self.vg
    }

    fn lvm(&self, command: &str) -> Cmd {
        let mut cmd = Cmd::new("lvm").arg(command);
        for device in &self.devices {
            cmd = cmd.arg("--devices").arg(device);
        }
        cmd
    }

    fn full_name(&self, lv: &LvName) -> String {
        format!("{}/{lv}", self.vg)
    }

    /// The device node of a volume. It exists while the volume is active.
    pub fn device(&self, lv: &LvName) -> Result<PathBuf> {
        Ok(Path::new("/dev/mapper").join(self.vg.dm_name(lv)?))
    }

    /// Reads the group in one call of lvm2; nothing if there is no such group, or no volume in it.
    pub fn load(&self) -> Result<Option<Group>> {
        // Selected rather than named, since a missing group that is named is an error, which only
        // its text tells from others.
        let report = self
            .lvm("vgs")
            .args(["--reportformat", "json", "--units", "b", "--nosuffix"])
            .args(["--select", &format!("vg_name={}", self.vg)])
            .args(["-o", COLUMNS])
            .run()
            .context("cannot read the volume group")?;
        report::parse(&report, &self.vg)
    }

    /// Activates one volume while the initramfs runs: no monitoring, no lock files, and in spite
    /// of its activation-skip flag.
    pub fn activate_at_boot(&self, lv: &LvName) -> Cmd {
        self.lvm("lvchange")
            .args(["--yes", "--sysinit", "-K", "-ay"])
            .arg(self.full_name(lv))
    }

    pub fn activate(&self, lv: &LvName) -> Cmd {
        self.lvm("lvchange")
            .args(["-K", "-ay"])
            .arg(self.full_name(lv))
    }

    pub fn deactivate(&self, lv: &LvName) -> Cmd {
        self.lvm("lvchange").arg("-an").arg(self.full_name(lv))
    }

    pub fn remove(&self, lv: &LvName) -> Cmd {
        self.lvm("lvremove").arg("--yes").arg(self.full_name(lv))
    }

    /// Creates the group on `devices`, which must carry no signature.
    pub fn create_group(&self, devices: &[PathBuf]) -> Cmd {
        self.lvm("vgcreate")
            .args(["--yes", "--addtag", tag::VG, self.vg.as_str()])
            .args(devices)
    }

    pub fn remove_group(&self) -> Cmd {
        self.lvm("vgremove").args(["--yes", self.vg.as_str()])
    }

    pub fn forget_devices(&self, devices: &[PathBuf]) -> Cmd {
        self.lvm("pvremove").arg("--yes").args(devices)
    }

    /// Creates the thin pool in `percent` of the group's free space. The rest is left for the
    /// pool's growth and repair.
    pub fn create_pool(&self, pool: &LvName, percent: u8) -> Cmd {
        self.lvm("lvcreate")
            .args(["--yes", "--type", "thin-pool"])
            .args(["--extents", &format!("{percent}%FREE")])
            .args(["--poolmetadataspare", "y"])
            // A full pool is to fail writes at once. lvcreate 2.03.31 refuses --errorwhenfull.
            .args(["--config", "activation/error_when_full=1"])
            .args(["--discards", "passdown", "--zero", "y"])
            .args(["--addtag", tag::POOL])
            .args(["--name", pool.as_str(), self.vg.as_str()])
    }

    /// Creates and activates a thin volume of `size` bytes, marked as incomplete. `skip` keeps it
    /// from being activated with the group, as bases and layers have to be.
    pub fn create_thin(&self, lv: &LvName, pool: &LvName, size: u64, skip: bool) -> Cmd {
        self.lvm("lvcreate")
            .args(["--yes", "--type", "thin"])
            .args(["--virtualsize", &format!("{size}b")])
            .args(["--thinpool", pool.as_str()])
            .args([
                "--setactivationskip",
                if skip { "y" } else { "n" },
                "-K",
                "-ay",
            ])
            .args(["--addtag", tag::INCOMPLETE])
            .args(["--name", lv.as_str(), self.vg.as_str()])
    }

    /// Creates and activates a writable thin snapshot, marked as incomplete. It carries the
    /// activation-skip flag.
    pub fn create_snapshot(&self, layer: &LvName, origin: &LvName, base: &LvName) -> Cmd {
        self.lvm("lvcreate")
            .args(["--yes", "--snapshot", "--permission", "rw"])
            .args(["--setactivationskip", "y", "-K", "-ay"])
            .args(["--addtag", tag::INCOMPLETE])
            .args(["--addtag", &format!("{}{base}", tag::OF)])
            .args(["--name", layer.as_str()])
            .arg(self.full_name(origin))
    }

    /// Makes a volume a base, a layer or a shared volume: the commit of its creation.
    pub fn complete(&self, lv: &LvName, role_tag: &str) -> Cmd {
        let cmd = self
            .lvm("lvchange")
            .args(["--deltag", tag::INCOMPLETE, "--addtag", role_tag]);
        let cmd = if role_tag == tag::BASE {
            cmd.args(["--permission", "r"])
        } else {
            cmd
        };
        cmd.arg(self.full_name(lv))
    }
}
