//! The volumes that a layer mounts beside its root. The initramfs has read the metadata of the group already, so it
//! activates them together with the layer, and leaves word of them for the generator in the running system. None of
//! that keeps a layer from being booted.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::generator::{UNIT_DIR, link};
use crate::lvm::Lvm;
use crate::lvm::disk::Metadata;
use crate::model::boot_record::BootRecord;
use crate::model::layout::Role;
use crate::model::name::{LvName, VgName};
use crate::model::package_records::{self, PACKAGES, RECORDS};
use crate::model::volume::{self, Mount, Volumes};
use crate::model::{fstab, mount_unit};
use crate::sys::cmd::Cmd;
use crate::sys::rooted::real_path;
use crate::sys::{mounts, run};

/// Mounts the layer's own records of packages.
const PACKAGES_UNIT: &str = "imgbased-packages.service";

/// The volumes that are mounted where what is booted is a layer. What is written to a base that runs is forgotten, so
/// it gets none.
pub fn of(metadata: &Metadata, role: Role) -> Vec<Mount> {
    if role != Role::Layer {
        return Vec::new();
    }
    let shared = metadata.shared.iter();
    let shared: Vec<(&str, &[String])> = shared
        .map(|(name, tags)| (name.as_str(), tags.as_slice()))
        .collect();
    volume::mounts(&shared, &mut |text| log::warn!("{text}"))
}

/// The layer and the volumes that are to be active with it.
pub fn with_layer(layer: &LvName, mounts: &[Mount]) -> Vec<LvName> {
    let mounted = mounts.iter().filter(|mount| !mount.moving);
    let names = mounted.filter_map(|mount| mount.name.parse().ok());
    [layer.clone()].into_iter().chain(names).collect()
}

/// Runs the command that activates these volumes, a layer and those beside it. One of those that fails is told of.
pub fn activate(lvm: &Lvm, names: &[LvName], command: &Cmd) -> Result<()> {
    let Err(error) = command.run() else {
        return Ok(());
    };
    let [layer, _, ..] = names else {
        return Err(error);
    };
    if !lvm.device(layer)?.exists() {
        return Err(error);
    }
    log::warn!("not every volume beside {layer} is active: {error:#}");
    Ok(())
}

/// Whether any of these volumes is not active.
pub fn any_inactive(lvm: &Lvm, names: &[LvName]) -> Result<bool> {
    for name in names {
        if !lvm.device(name)?.exists() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses volumes that are active and belong to another group of the same name: whoever has activated one of that may
/// have known its name only.
pub fn check_own(lvm: &Lvm, names: &[LvName], vgid: &str) -> Result<()> {
    for name in names {
        let device = lvm.device(name)?;
        let Ok(found) = fs::metadata(&device) else {
            continue;
        };
        let uuid = mounts::dm_uuid(found.rdev());
        ensure!(
            is_of_group(uuid.as_deref().unwrap_or_default(), vgid),
            "{} is active, but of another group that is named {} as well; detach the disk of that group",
            device.display(),
            lvm.vg()
        );
    }
    Ok(())
}

/// Whether device-mapper has it as a volume of the group: its UUID there begins with that of the group.
fn is_of_group(uuid: &str, vgid: &str) -> bool {
    let ids = uuid.strip_prefix("LVM-");
    ids.is_some_and(|ids| ids.starts_with(&vgid.replace('-', "")))
}

/// Leaves word of the volumes of a layer for the generator, also where there are none: that this initramfs does so
/// is what a new volume needs.
pub fn hand_over(vg: &VgName, role: Role, mounts: Vec<Mount>) {
    if role != Role::Layer {
        return;
    }
    let volumes = Volumes::new(vg, mounts);
    if let Err(error) = run::write_json(run::VOLUMES, &volumes) {
        log::warn!("no volume will be mounted: {error:#}");
    }
}

/// What the group of the layer that runs is called now: vgrename(8) has device-mapper rename what is active.
pub fn running_group() -> Option<VgName> {
    let record: BootRecord = run::read_json(run::BOOT_RECORD)?;
    let mounted = mounts::dm_name_at(Path::new("/")).ok()??;
    VgName::of_dm_name(&mounted, &record.layer.parse().ok()?)
}

/// Writes a unit for each volume that the file `source` tells of into the directory `dir` of a generator
/// (systemd.generator(7)). The group is called `now`, if that is known, and else as it was when the file was written.
/// Where the layer itself mounts something at that path, in its `fstab`, that counts.
pub fn write_units(dir: &Path, source: &str, now: Option<VgName>, fstab: &Path) -> Result<()> {
    let Some(Volumes { vg, volumes, .. }) = run::read_json(source) else {
        return Ok(());
    };
    let vg = now.map_or_else(|| vg.parse(), Ok)?;
    let fstab = fs::read(fstab).unwrap_or_default();
    let (mut hides_packages, mut is_var_shared) = (false, false);
    for mount in volumes {
        let (name, path) = (&mount.name, &mount.path);
        let written = if mount.moving {
            let unit = Path::new(UNIT_DIR).join(mount_unit::MOVE);
            link(
                &unit,
                &dir.join("sysinit.target.wants").join(mount_unit::MOVE),
            )
        } else if fstab::has(&fstab, path) {
            log::warn!("{name} is not mounted: the fstab of this layer has a line for {path}");
            Ok(())
        } else {
            hides_packages |= package_records::paths().any(|record| record.starts_with(path));
            is_var_shared |= mount.is_required();
            write_unit(dir, source, &vg, &mount)
        };
        if let Err(error) = written {
            log::error!("{name} is not mounted at {path}: {error:#}");
        }
    }
    for (unit, is_wanted) in [
        (PACKAGES_UNIT, hides_packages),
        (mount_unit::COMPLETE, is_var_shared),
    ] {
        if is_wanted {
            let wanted = dir.join("local-fs.target.wants").join(unit);
            link(&Path::new(UNIT_DIR).join(unit), &wanted)?;
        }
    }
    Ok(())
}

fn write_unit(dir: &Path, source: &str, vg: &VgName, mount: &Mount) -> Result<()> {
    let device = format!("/dev/mapper/{}", vg.dm_name(&mount.name.parse()?)?);
    let unit = mount_unit::name(&mount.path);
    let path = dir.join(&unit);
    fs::write(&path, mount_unit::render(mount, &device, source))
        .with_context(|| format!("cannot write {}", path.display()))?;
    // Without the others a system does its work.
    let pulled = if mount.is_required() {
        "local-fs.target.requires"
    } else {
        "local-fs.target.wants"
    };
    link(&Path::new("..").join(&unit), &dir.join(pulled).join(&unit))
}

/// Mounts what the layer has recorded of its packages over what a volume has at the same place: which packages are
/// installed is of each layer.
pub fn mount_packages() -> Result<()> {
    // Without what is mounted below it, such as that volume; and what is mounted meanwhile does not come there.
    let own = Path::new(run::OWN);
    fs::create_dir_all(own).with_context(|| format!("cannot create {}", own.display()))?;
    let bind = || Cmd::new("mount").arg("--bind");
    bind().arg("--make-private").arg("/").arg(own).run()?;
    let mut done = Ok(());
    for name in RECORDS {
        let mounted = to_bind(own, Path::new("/"), name).and_then(|found| match found {
            Some((record, place)) => bind().arg(record).arg(place).run().map(drop),
            None => Ok(()),
        });
        let failed = || format!("the packages of this layer are not at {PACKAGES}/{name}");
        done = done.and(mounted.with_context(failed));
    }
    Cmd::new("umount").arg("--lazy").arg(own).run()?;
    done
}

/// Where a layer whose own root is mounted at `own` has a record of packages, and where programs look for it below `root`,
/// with what is mounted there. Nothing where the layer has none, or where they find it.
///
/// Each of the two can have a link to /usr there, as in an image that was prepared, and the other one a directory. Of
/// the layer that counts what its own link leads to. What the link of a volume leads to is of the layer that runs.
fn to_bind(own: &Path, root: &Path, name: &str) -> Result<Option<(PathBuf, PathBuf)>> {
    let inside = format!("{}/{name}", PACKAGES.trim_start_matches('/'));
    let directory = |root: &Path| real_path(root, &inside).ok().filter(|path| path.is_dir());
    let Some(record) = directory(own) else {
        return Ok(None);
    };
    let place = if let Some(place) = directory(root) {
        place
    } else {
        let place = root.join(&inside);
        ensure!(
            !place.is_symlink(),
            "it is a link on the volume, which leads to no directory of this layer"
        );
        fs::create_dir_all(&place)?;
        place
    };
    let id = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    Ok((id(&record)? != id(&place)?).then_some((record, place)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::tag;
    use std::os::unix::fs::symlink;

    fn mount(path: &str, name: &str) -> Mount {
        Mount {
            path: path.to_owned(),
            name: name.to_owned(),
            options: String::new(),
            moving: false,
        }
    }

    fn moving(path: &str, name: &str) -> Mount {
        Mount {
            moving: true,
            ..mount(path, name)
        }
    }

    #[test]
    fn a_volume_is_of_the_group_whose_uuid_device_mapper_has() {
        let vgid = "abcdef-0123-4567-89ab-cdef-0123-456789";
        let own = "LVM-abcdef0123456789abcdef0123456789zyxwvuZYXWVUzyxwvuZYXWVUzyxwvuZY\n";
        for (uuid, is_own) in [
            (own, true),
            (&own.replace("LVM-a", "LVM-b"), false),
            (&own.replace("LVM-", "CRYPT-"), false),
            ("", false),
        ] {
            assert_eq!(is_of_group(uuid, vgid), is_own, "{uuid}");
        }
    }

    #[test]
    fn a_layer_gets_its_volumes_and_a_base_none() {
        let shared = [mount("/var", "var"), moving("/home", "home")];
        let mut metadata = Metadata::default();
        for mount in &shared {
            let tags = mount.tags().unwrap();
            metadata.shared.push((mount.name.clone(), tags));
        }
        let config = ("Config".to_owned(), vec![tag::VOLUME.to_owned()]);
        metadata.shared.push(config);
        assert_eq!(of(&metadata, Role::Base), []);
        let found = of(&metadata, Role::Layer);
        assert_eq!(found, [moving("/home", "home"), mount("/var", "var")]);
        let layer = "Base-0.1".parse().unwrap();
        let names = with_layer(&layer, &found);
        let names: Vec<&str> = names.iter().map(LvName::as_str).collect();
        assert_eq!(names, ["Base-0.1", "var"]);
    }

    #[test]
    fn units_are_written_for_what_is_mounted_now_and_not_for_what_the_layer_mounts_itself() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("volumes.json");
        let source = source.to_str().unwrap();
        let fstab = dir.path().join("fstab");
        fs::write(&fstab, "/dev/sdb1 /srv ext4 defaults 0 2\n").unwrap();
        // Without the file there is nothing to be done.
        write_units(dir.path(), source, None, &fstab).unwrap();
        let bad = mount("/bad", "a b");
        let all = vec![
            bad,
            mount("/srv", "srv"),
            mount("/srv/data", "srv-data"),
            mount("/var", "var"),
            moving("/home", "home"),
        ];
        let volumes = Volumes::new(&"Host-VG".parse().unwrap(), all);
        run::write_json(source, &volumes).unwrap();
        let units = dir.path().join("units");
        fs::create_dir(&units).unwrap();
        for _ in 0..2 {
            write_units(&units, source, None, &fstab).unwrap();
        }
        let mut there: Vec<String> = Vec::new();
        for place in [
            "",
            "local-fs.target.requires",
            "local-fs.target.wants",
            "sysinit.target.wants",
        ] {
            for entry in fs::read_dir(units.join(place)).unwrap() {
                let entry = entry.unwrap();
                if !entry.file_type().unwrap().is_dir() {
                    let name = entry.file_name().into_string().unwrap();
                    there.push(format!("{place}/{name}"));
                }
            }
        }
        there.sort();
        assert_eq!(
            there,
            [
                "/srv-data.mount",
                "/var.mount",
                "local-fs.target.requires/var.mount",
                "local-fs.target.wants/imgbased-complete.service",
                "local-fs.target.wants/imgbased-packages.service",
                "local-fs.target.wants/srv-data.mount",
                "sysinit.target.wants/imgbased-move.service",
            ]
        );
        let linked = fs::read_to_string(units.join("local-fs.target.wants/srv-data.mount"));
        let linked = linked.unwrap();
        assert!(
            linked.contains("What=/dev/mapper/Host--VG-srv--data\n"),
            "{linked}"
        );
        // The group was renamed since.
        write_units(&units, source, "New".parse().ok(), &fstab).unwrap();
        let unit = fs::read_to_string(units.join("var.mount")).unwrap();
        assert!(unit.contains("What=/dev/mapper/New-var\n"), "{unit}");
    }

    #[test]
    fn a_volume_that_hides_a_record_of_packages_has_it_mounted_again() {
        for (path, is_hidden) in [
            ("/var", true),
            ("/var/lib", true),
            ("/var/lib/systemd", true),
            ("/var/lib/dpkg", true),
            ("/var/lib/dpkg2", false),
            ("/var/lib/dpkg/info", false),
            ("/var/log", false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let source = dir.path().join("volumes.json");
            let volumes = Volumes::new(&"HostVG".parse().unwrap(), vec![mount(path, "x")]);
            let source = source.to_str().unwrap();
            run::write_json(source, &volumes).unwrap();
            write_units(dir.path(), source, None, Path::new("/none")).unwrap();
            let unit = dir.path().join("local-fs.target.wants").join(PACKAGES_UNIT);
            assert_eq!(unit.is_symlink(), is_hidden, "{path}");
        }
    }

    #[test]
    fn the_record_of_a_layer_is_where_programs_look_for_it() {
        const LINK: &str = "../../usr/lib/sysimage/dpkg";
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().canonicalize().unwrap();
        let [own, root] = ["own", "root"].map(|name| parent.join(name));
        // What is at /var/lib/dpkg of the layer and of the volume, and whether there is the directory in /usr.
        for (of_layer, of_volume, has_usr, wanted) in [
            (
                "dir",
                "dir",
                false,
                Ok(Some(("var/lib/dpkg", "var/lib/dpkg"))),
            ),
            (
                "dir",
                "none",
                false,
                Ok(Some(("var/lib/dpkg", "var/lib/dpkg"))),
            ),
            (
                "link",
                "dir",
                true,
                Ok(Some(("usr/lib/sysimage/dpkg", "var/lib/dpkg"))),
            ),
            (
                "link",
                "none",
                true,
                Ok(Some(("usr/lib/sysimage/dpkg", "var/lib/dpkg"))),
            ),
            (
                "dir",
                "link",
                true,
                Ok(Some(("var/lib/dpkg", "usr/lib/sysimage/dpkg"))),
            ),
            ("dir", "link", false, Err("leads to no directory")),
            ("link", "dir", false, Ok(None)),
            ("none", "dir", false, Ok(None)),
            ("out", "dir", false, Ok(None)),
        ] {
            for (top, what) in [(&own, of_layer), (&root, of_volume)] {
                let _ = fs::remove_dir_all(top);
                fs::create_dir_all(top.join("var/lib")).unwrap();
                if has_usr {
                    fs::create_dir_all(top.join("usr/lib/sysimage/dpkg")).unwrap();
                }
                let place = top.join("var/lib/dpkg");
                match what {
                    "dir" => fs::create_dir(place).unwrap(),
                    "link" => symlink(LINK, place).unwrap(),
                    "out" => symlink("../../../root/var/lib/dpkg", place).unwrap(),
                    _ => {}
                }
            }
            let found = to_bind(&own, &root, "dpkg");
            match wanted {
                Ok(wanted) => {
                    let wanted = wanted.map(|(record, place)| (own.join(record), root.join(place)));
                    assert_eq!(found.unwrap(), wanted, "{of_layer} {of_volume}");
                }
                Err(wanted) => assert!(found.unwrap_err().to_string().contains(wanted)),
            }
            // Where both are one directory, there is nothing to do.
            assert_eq!(to_bind(&own, &own, "dpkg").unwrap(), None, "{of_layer}");
        }
    }
}
