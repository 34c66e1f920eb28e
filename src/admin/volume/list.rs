//! `volume list`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use super::{OWN_UNITS, is_mounted, mounts_of};
use crate::admin::text::Tone;
use crate::admin::view::JSON_VERSION;
use crate::admin::{Context, text};
use crate::model::layout::{Role, Volume};
use crate::model::mount_unit;
use crate::model::volume::Mount;
use crate::sys::probe;

/// Sizes are bytes.
#[derive(Serialize)]
struct Row {
    /// Of Config, and of what is not mounted anywhere, none is known.
    path: Option<String>,
    name: String,
    /// Only an active volume shows it.
    fstype: Option<String>,
    size: u64,
    /// Only a mounted one tells it.
    used: Option<u64>,
    mounted: bool,
    required: bool,
    options: String,
    /// Whether it waits for the content of the path.
    moving: bool,
}

#[derive(Serialize)]
struct List {
    version: u32,
    volumes: Vec<Row>,
}

/// Lists the volumes that layers share, also those that imgbased made.
pub fn list(context: &Context) -> Result<()> {
    let list = List {
        version: JSON_VERSION,
        volumes: rows(context)?,
    };
    context.show(&list, || {
        let line = |row: &Row| {
            let used = row.used.map(text::size).unwrap_or_default();
            let fstype = row.fstype.as_deref().unwrap_or_default();
            let is_missed = row.path.is_some() && !row.mounted && !row.moving;
            let marks = context.paint.marks(&[
                (true, Tone::Plain, &row.name),
                (row.fstype.is_some(), Tone::Plain, fstype),
                (row.used.is_some(), Tone::Plain, &format!("{used} used")),
                (row.required, Tone::Plain, "required"),
                (row.moving, Tone::Notice, "moves when the system goes down"),
                (is_missed, Tone::Bad, "not mounted"),
            ]);
            let path = row.path.clone().unwrap_or_else(|| "-".to_owned());
            (path, format!("{:>10}  {marks}", text::size(row.size)))
        };
        text::columns(&list.volumes.iter().map(line).collect::<Vec<_>>())
    })
}

/// The paths of those that have one.
pub fn paths(context: &Context) -> Result<Vec<String>> {
    let rows = rows(context)?.into_iter();
    Ok(rows.filter_map(|row| row.path).collect())
}

fn rows(context: &Context) -> Result<Vec<Row>> {
    let group = context.load()?;
    let mounts = mounts_of(&group);
    let mut rows: Vec<Row> = Vec::new();
    for volume in group.with_role(Role::Volume) {
        let row = row(context, volume, &mounts)?;
        let at = rows.partition_point(|other| (&other.path, &other.name) < (&row.path, &row.name));
        rows.insert(at, row);
    }
    Ok(rows)
}

fn row(context: &Context, volume: &Volume, mounts: &[Mount]) -> Result<Row> {
    let mount = mounts.iter().find(|mount| mount.name == volume.name);
    let path = match mount {
        Some(mount) => Some(mount.path.clone()),
        None => unit_of(context, &volume.name)?.map(|unit| unit.path),
    };
    let mounted = match &path {
        Some(path) => is_mounted(context, &volume.name, path)?,
        None => false,
    };
    let device = context.lvm.device(&volume.name.parse()?)?;
    let signature = volume
        .active
        .then(|| probe::signature(&device).ok())
        .flatten();
    let space = path
        .as_ref()
        .filter(|_| mounted)
        .and_then(|path| statvfs(path.as_str()).ok());
    Ok(Row {
        name: volume.name.clone(),
        fstype: signature.flatten().map(|signature| signature.kind),
        size: volume.size,
        used: space.map(|space| {
            let used = space.blocks().saturating_sub(space.blocks_free());
            used.saturating_mul(space.fragment_size())
        }),
        mounted,
        required: mount.is_some_and(Mount::is_required),
        options: mount.map_or_else(String::new, |mount| mount.options.clone()),
        moving: mount.is_some_and(|mount| mount.moving),
        path,
    })
}

/// A unit of the layer itself that mounts a volume.
#[derive(Debug, PartialEq, Eq)]
pub struct Unit {
    pub file: PathBuf,
    /// Where it mounts it.
    pub path: String,
}

/// The unit that mounts a volume: so imgbased does it, and no name of a volume tells for certain which path is meant.
pub fn unit_of(context: &Context, name: &str) -> Result<Option<Unit>> {
    let devices = [
        context.lvm.device(&name.parse()?)?,
        PathBuf::from(format!("/dev/{}/{name}", context.lvm.vg())),
    ];
    Ok(unit_in(Path::new(OWN_UNITS), &devices))
}

fn unit_in(dir: &Path, devices: &[PathBuf]) -> Option<Unit> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let file = entry.path();
        if file.extension().is_none_or(|kind| kind != "mount") {
            continue;
        }
        let unit = fs::read_to_string(&file).unwrap_or_default();
        if let Some((device, path)) = mount_unit::device_and_path(&unit)
            && devices.iter().any(|known| known == Path::new(device))
        {
            let path = path.to_owned();
            return Some(Unit { file, path });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_where_a_unit_of_its_device_mounts_it() {
        let dir = tempfile::tempdir().unwrap();
        let devices = ["/dev/mapper/onn-var_log", "/dev/onn/var_log"].map(PathBuf::from);
        let found = || unit_in(dir.path(), &devices);
        assert_eq!(found(), None);
        for (name, device) in [
            ("home.mount", "/dev/onn/home"),
            ("var-log.conf", "/dev/onn/var_log"),
        ] {
            let unit = format!("[Mount]\nWhat={device}\nWhere=/home\n");
            fs::write(dir.path().join(name), unit).unwrap();
        }
        assert_eq!(found(), None);
        let file = dir.path().join("var-log.mount");
        fs::write(&file, "[Mount]\nWhat=/dev/onn/var_log\nWhere=/var/log\n").unwrap();
        let path = "/var/log".to_owned();
        assert_eq!(found(), Some(Unit { file, path }));
        assert_eq!(unit_in(&dir.path().join("none"), &devices), None);
    }

    #[test]
    fn the_list_is_a_document_as_its_schema_says() {
        let rows = [(Some("/home".to_owned()), Some(4096)), (None, None)];
        let rows = rows.map(|(path, used)| Row {
            fstype: path.as_ref().map(|_| "ext4".to_owned()),
            path,
            name: "home".to_owned(),
            size: 1 << 30,
            used,
            mounted: used.is_some(),
            required: false,
            options: "noatime".to_owned(),
            moving: false,
        });
        let list = List {
            version: JSON_VERSION,
            volumes: rows.into(),
        };
        crate::schemas::assert_holds("volume-list", &list);
    }
}
