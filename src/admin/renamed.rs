//! A group that was renamed, copied or restored: its entries, what boots, and the devices in the fstab of
//! its layers still name it as it was called before.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Context, view, volume};
use crate::boot::BootPartition;
use crate::boot::entry::Entry;
use crate::boot::renamed::Known;
use crate::boot::root::Root;
use crate::lvm::GroupDisk;
use crate::model::fstab;
use crate::model::layout::{Group, Role};
use crate::model::name::{LvName, VgName};
use crate::sys::mounts;
use crate::sys::transaction::{Transaction, Writer};

/// The groups that entries can name.
#[derive(Default)]
pub struct Others(Vec<Disk>);

/// A disk of such a group.
struct Disk {
    vg: String,
    vgid: String,
    /// Whether the boot partition is on a disk of our group, and not on this one: then it belongs to ours.
    is_elsewhere: bool,
}

impl Others {
    /// Looks at all disks, but only where an entry names another group.
    pub fn read(
        context: &Context,
        group: &Group,
        boot: &BootPartition,
        entries: &[Entry],
    ) -> Result<Self> {
        let is_other = |entry: &Entry| entry.vg() != group.name.as_str();
        if !entries.iter().any(is_other) {
            return Ok(Self::default());
        }
        let all = context.lvm.all_disks()?;
        let mut ours = all.iter().filter(|pv| pv.vgid == group.uuid);
        let boot = mounts::disk_of(boot.device()?);
        let boot = boot.filter(|boot| ours.any(|pv| disk_of(&pv.device).as_ref() == Some(boot)));
        let disk = |pv: GroupDisk| Disk {
            is_elsewhere: boot.is_some() && disk_of(&pv.device) != boot,
            vg: pv.vg,
            vgid: pv.vgid,
        };
        Ok(Self(all.into_iter().map(disk).collect()))
    }

    /// Whether the group that an entry names is not there, or is the first of which ours is a copy.
    pub fn lacks(&self, entry: &Entry) -> bool {
        let is_named = |disk: &&Disk| match entry.vgid() {
            Some(vgid) => disk.vgid == vgid,
            None => disk.vg == entry.vg(),
        };
        self.0.iter().filter(is_named).all(|disk| disk.is_elsewhere)
    }
}

/// The disk of a physical volume.
fn disk_of(device: &Path) -> Option<PathBuf> {
    mounts::disk_of(fs::metadata(device).ok()?.rdev())
}

/// The entries of the group under another name.
pub fn entries(
    group: &Group,
    boot: &BootPartition,
    entries: &[Entry],
    others: &Others,
) -> Result<Vec<Entry>> {
    boot.renamed(
        entries,
        &Known {
            uuid: &group.uuid,
            bootable: &group.bootable(),
            is_gone: &|entry| others.lacks(entry),
        },
    )
}

/// What is wrong with these entries.
pub fn problem(entries: &[Entry]) -> String {
    let names: Vec<String> = names(entries).iter().map(VgName::to_string).collect();
    let count = entries.len();
    format!(
        "{count} boot entries name it {}, and do not find it by that name",
        names.join(" and ")
    )
}

fn names(entries: &[Entry]) -> Vec<VgName> {
    let mut names: Vec<VgName> = Vec::new();
    for (name, _) in entries.iter().filter_map(Entry::place) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Has all of them name the group as it is called now. Each layer is a unit of work, and the entries are the
/// last: until they are done, all is found once more.
pub fn repair(context: &Context, writer: &Writer) -> Result<()> {
    let group = context.load()?;
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let all = boot.entries()?;
    let others = Others::read(context, &group, &boot, &all)?;
    let old = entries(&group, &boot, &all, &others)?;
    for volume in group.with_role(Role::Layer) {
        let name: LvName = volume.name.parse()?;
        let done =
            writer.transaction(|tx| rename_devices(context, tx, &group, &name, &names(&old)));
        // What boots is more important.
        if let Err(error) = done {
            writer.interrupt().check()?;
            log::warn!("the fstab of {name} stays as it is: {error:#}");
        }
    }
    let uuid = group.uuid.parse().ok();
    writer.transaction(|tx| boot.rename(tx, &old, uuid.as_ref()))?;
    volume::hand_over_renamed(context, writer, &group)
}

/// Has the fstab of a layer name the volumes of the group by its new name.
fn rename_devices(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    name: &LvName,
    old: &[VgName],
) -> Result<()> {
    if view::booted(group)?.as_deref() == Some(name.as_str()) {
        return rename_in(tx, Path::new("/"), group, old);
    }
    let is_active = group.volume(name.as_str()).is_some_and(|v| v.active);
    let look = context.look(group, name)?;
    context.activated(tx, name, is_active, |tx| {
        let filesystem = context.filesystem(name, name)?;
        let rename = |tx: &mut Transaction, root: &Path| rename_in(tx, root, group, old);
        context
            .mounted(tx, name, &filesystem, "rw", look.as_ref(), rename)
            .map(drop)
    })
}

fn rename_in(tx: &mut Transaction, root: &Path, group: &Group, old: &[VgName]) -> Result<()> {
    let Some(found) = Root::at(root).fstab()? else {
        return Ok(());
    };
    let text = fstab::with_devices(&found.text, |device| renamed(device, group, old));
    if text == found.text {
        return Ok(());
    }
    let mode = fs::metadata(&found.path)?.permissions().mode() & 0o7777;
    tx.write(&found.path, &text, mode)
}

/// The device of a volume by the new name of its group.
fn renamed(device: &str, group: &Group, old: &[VgName]) -> Option<String> {
    let is_there = |name: &LvName| group.volume(name.as_str()).is_some();
    old.iter().find_map(|old| {
        if let Some(dm_name) = device.strip_prefix("/dev/mapper/") {
            let name = old.lv_of(dm_name).filter(is_there)?;
            return Some(format!("/dev/mapper/{}", group.name.dm_name(&name).ok()?));
        }
        let name = device.strip_prefix(&format!("/dev/{old}/"))?;
        let name = name.parse().ok().filter(is_there)?;
        Some(format!("/dev/{}/{name}", group.name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::Volume;

    #[test]
    fn a_group_is_lacking_where_it_is_not_there_or_on_another_disk_than_its_boot_partition() {
        let entry = |options: &str| {
            let text = format!(
                "title x\nversion 1\nsort-key x\nlinux /l\ninitrd /i\noptions imgbased.layer=L {options}\n"
            );
            Entry::parse("x", &text).unwrap().unwrap()
        };
        let disk = |vg: &str, vgid: &str, is_elsewhere| Disk {
            vg: vg.to_owned(),
            vgid: vgid.to_owned(),
            is_elsewhere,
        };
        let others = Others(vec![
            disk("A", "a", false),
            disk("B", "b", true),
            disk("B", "b", true),
            disk("C", "c", true),
            disk("C", "c", false),
        ]);
        for (options, is_lacking) in [
            ("imgbased.vg=A imgbased.vgid=a", false),
            ("imgbased.vg=A", false),
            ("imgbased.vg=A imgbased.vgid=z", true),
            ("imgbased.vg=Z imgbased.vgid=a", false),
            ("imgbased.vg=B imgbased.vgid=b", true),
            ("imgbased.vg=C imgbased.vgid=c", false),
            ("imgbased.vg=Z", true),
            ("", true),
        ] {
            assert_eq!(others.lacks(&entry(options)), is_lacking, "{options}");
        }
    }

    #[test]
    fn devices_of_the_old_name_get_the_new_one() {
        let volume = |name: &str| Volume {
            name: name.into(),
            ..Volume::default()
        };
        let group = Group {
            name: "new-vg".parse().unwrap(),
            uuid: String::new(),
            tags: Vec::new(),
            size: 0,
            free: 0,
            missing_pvs: 0,
            volumes: vec![volume("Base-0.1"), volume("Config")],
        };
        let old = ["HostVG".parse().unwrap(), "a-b".parse().unwrap()];
        for (device, expected) in [
            (
                "/dev/mapper/HostVG-Base--0.1",
                Some("/dev/mapper/new--vg-Base--0.1"),
            ),
            (
                "/dev/mapper/a--b-Config",
                Some("/dev/mapper/new--vg-Config"),
            ),
            ("/dev/HostVG/Config", Some("/dev/new-vg/Config")),
            ("/dev/a-b/Base-0.1", Some("/dev/new-vg/Base-0.1")),
            // It is not there, is of another group, or is none.
            ("/dev/mapper/HostVG-Data", None),
            ("/dev/HostVG/Data", None),
            ("/dev/mapper/HostVG--x-Config", None),
            ("/dev/HostVG-x/Config", None),
            ("LABEL=boot", None),
            ("", None),
        ] {
            assert_eq!(
                renamed(device, &group, &old).as_deref(),
                expected,
                "{device}"
            );
        }
    }
}
