//! Which volume group is meant, of those that the disks describe. Names are not unique: each host has a
//! `HostVG` with a `Base-0.1`, and a disk of another host can be in this one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::cmdline::Request;
use crate::lvm::disk::{Metadata, PhysicalVolume};
use crate::model::layout::{Role, bootable};
use crate::model::name::LvName;

/// How many names an error lists. A record of the kernel's log is short.
const NAMES_MAX: usize = 20;

/// The physical volumes that are there, by their devices. Each has the metadata of its group only if that has
/// the name of the command line.
pub type Disks = BTreeMap<PathBuf, PhysicalVolume>;

/// A volume group as its disks describe it.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    pub metadata: Metadata,
    /// The devices of the group that are there.
    pub devices: Vec<PathBuf>,
    /// How many of its disks are not there.
    pub missing: usize,
}

impl Group {
    fn has(&self, layer: &LvName) -> bool {
        let volumes = &self.metadata.volumes;
        volumes.iter().any(|(name, _)| name == layer.as_str())
    }
}

/// Whether nothing else than this group is meant: it has the UUID of the command line, if there is one.
fn counts(metadata: &Metadata, request: &Request) -> bool {
    let vgid = request.vgid.as_ref();
    vgid.is_none_or(|vgid| vgid.as_str() == metadata.uuid)
}

/// The groups that the request can mean, as the disks describe them. Without a UUID there can be several.
pub fn candidates(disks: &Disks, request: &Request) -> Vec<Group> {
    let mut groups = groups(disks);
    groups.retain(|group| counts(&group.metadata, request));
    groups
}

/// All groups of the name that was read.
fn groups(disks: &Disks) -> Vec<Group> {
    let mut newest: BTreeMap<&str, &Metadata> = BTreeMap::new();
    for metadata in disks.values().filter_map(|disk| disk.metadata.as_ref()) {
        let known = newest.entry(&metadata.uuid).or_insert(metadata);
        // A disk that was away for a while does not know what was done since.
        if metadata.seqno > known.seqno {
            *known = metadata;
        }
    }
    let group = |metadata: &Metadata| {
        let of_group = disks
            .iter()
            .filter(|(_, d)| metadata.disks.contains(&d.uuid));
        let is_there = |uuid: &&String| disks.values().any(|disk| disk.uuid == **uuid);
        Group {
            metadata: metadata.clone(),
            devices: of_group.map(|(device, _)| device.clone()).collect(),
            missing: metadata.disks.len() - metadata.disks.iter().filter(is_there).count(),
        }
    };
    newest.into_values().map(group).collect()
}

/// The group to go on with before the time is over: a complete one that the UUID names, or the only one with
/// the layer. All others wait for [`last_choice`], since a disk that comes later can bring the right one.
pub fn first_choice(mut groups: Vec<Group>, request: &Request) -> Option<Group> {
    groups.retain(|group| request.vgid.is_some() || group.has(&request.layer));
    match <[Group; 1]>::try_from(groups) {
        Ok([group]) if group.missing == 0 => Some(group),
        _ => None,
    }
}

/// The group to go on with when the time is over: the one with the layer, complete or not, since the layer
/// may be whole. Without one a complete group, for the error that names its layers.
///
/// Refuses two groups with the layer.
pub fn last_choice(groups: Vec<Group>, request: &Request) -> Result<Option<Group>> {
    let Request { vg, layer, .. } = request;
    let (mut with, without): (Vec<Group>, Vec<Group>) =
        groups.into_iter().partition(|group| group.has(layer));
    if with.len() > 1 {
        let uuids: Vec<&str> = with.iter().map(|g| g.metadata.uuid.as_str()).collect();
        bail!(
            "there are several volume groups {vg} with {layer}: {}; choose one with imgbased.vgid= on the kernel command line, or rename one with vgrename(8)",
            uuids.join(", ")
        );
    }
    let complete = || without.into_iter().find(|group| group.missing == 0);
    Ok(with.pop().or_else(complete))
}

/// What is there of the group, for a message.
pub fn describe(disks: &Disks, request: &Request) -> String {
    let names = |disks: &mut dyn Iterator<Item = &PathBuf>| {
        let names: Vec<String> = disks.map(|d| d.display().to_string()).collect();
        names.join(" ")
    };
    if disks.is_empty() {
        return "no disk with an LVM physical volume was seen".to_owned();
    }
    let groups = groups(disks);
    if groups.is_empty() {
        let mut damaged = disks.iter().filter(|(_, disk)| disk.damage.is_some());
        if let Some((device, disk)) = damaged.next() {
            let damage = disk.damage.as_deref().unwrap_or_default();
            return format!(
                "the LVM metadata on {} are damaged: {damage}",
                device.display()
            );
        }
        let seen = names(&mut disks.keys());
        return format!("physical volumes of other groups were seen on {seen}");
    }
    let group = |group: &Group| {
        let (all, devices) = (group.metadata.disks.len(), &group.devices);
        let there = names(&mut devices.iter());
        if !counts(&group.metadata, request) {
            let uuid = &group.metadata.uuid;
            return format!("another group of that name, {uuid}, is on {there}");
        }
        format!(
            "{} of its {all} disks are there: {there}",
            all - group.missing
        )
    };
    groups.iter().map(group).collect::<Vec<_>>().join("; ")
}

/// What the requested name is, a layer or a base; the error says which there are.
pub fn find(request: &Request, group: &Group) -> Result<Role> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::early::cmdline;

    /// A disk of the group `group`, which has these disks and volumes.
    fn disk(uuid: &str, group: &str, seqno: u64, all: &[&str], volumes: &[&str]) -> PhysicalVolume {
        let volume = |name: &&str| ((*name).to_owned(), Role::Layer);
        PhysicalVolume {
            uuid: uuid.to_owned(),
            metadata: Some(Metadata {
                uuid: group.to_owned(),
                seqno,
                disks: all.iter().map(|&uuid| uuid.to_owned()).collect(),
                volumes: volumes.iter().map(volume).collect(),
                shared: Vec::new(),
            }),
            damage: None,
        }
    }

    fn bare(uuid: &str) -> PhysicalVolume {
        PhysicalVolume {
            uuid: uuid.to_owned(),
            metadata: None,
            damage: None,
        }
    }

    const VGID: &str = "mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mNo";
    const OTHER: &str = "xx7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mNo";

    fn by_name() -> Request {
        request("L")
    }

    fn by_uuid() -> Request {
        request(&format!("L imgbased.vgid={VGID}"))
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Verdict {
        /// It goes on at once, with these disks.
        Now(Vec<usize>),
        /// It waits, and goes on with these disks when the time is over.
        AtTheEnd(Vec<usize>),
        /// It waits, and gives up when the time is over.
        Never,
        /// The same for two groups with the layer.
        Several,
    }
    use Verdict::{AtTheEnd, Never, Now, Several};

    fn verdict(disks: &[PhysicalVolume], request: &Request) -> Verdict {
        let named = disks.iter().cloned().enumerate();
        let disks = named.map(|(n, disk)| (PathBuf::from(n.to_string()), disk));
        let disks: Disks = disks.collect();
        let numbers = |group: Group| {
            let number = |device: PathBuf| device.display().to_string().parse().unwrap();
            group.devices.into_iter().map(number).collect()
        };
        if let Some(group) = first_choice(candidates(&disks, request), request) {
            return Now(numbers(group));
        }
        match last_choice(candidates(&disks, request), request) {
            Ok(Some(group)) => AtTheEnd(numbers(group)),
            Ok(None) => Never,
            Err(error) => {
                assert!(error.to_string().contains("imgbased.vgid="), "{error}");
                Several
            }
        }
    }

    #[test]
    fn a_group_is_judged_by_what_can_still_come() {
        let both = ["a", "b"];
        let right = || disk("a", VGID, 1, &["a"], &["L"]);
        let without = || disk("a", VGID, 1, &["a"], &["M"]);
        let half = || disk("a", VGID, 1, &both, &["L"]);
        let other = || disk("x", OTHER, 1, &["x"], &["L"]);
        let other_without = || disk("x", OTHER, 1, &["x"], &["M"]);
        let other_half = || disk("x", OTHER, 1, &["x", "y"], &["L"]);
        // What is seen, in this order; what is done by name, and by UUID.
        let table: [(Vec<PhysicalVolume>, Verdict, Verdict); 17] = [
            (vec![], Never, Never),
            (vec![bare("z")], Never, Never),
            (vec![right()], Now(vec![0]), Now(vec![0])),
            (vec![bare("z"), right()], Now(vec![1]), Now(vec![1])),
            (vec![without()], AtTheEnd(vec![0]), Now(vec![0])),
            (vec![half()], AtTheEnd(vec![0]), AtTheEnd(vec![0])),
            // The second disk has no copy of the metadata, the third is of another group.
            (
                vec![half(), bare("b"), bare("z")],
                Now(vec![0, 1]),
                Now(vec![0, 1]),
            ),
            (vec![other()], Now(vec![0]), Never),
            (vec![other_without()], AtTheEnd(vec![0]), Never),
            (vec![other_half()], AtTheEnd(vec![0]), Never),
            (vec![right(), other()], Several, Now(vec![0])),
            (vec![other(), right()], Several, Now(vec![1])),
            (vec![right(), other_without()], Now(vec![0]), Now(vec![0])),
            (vec![other_without(), right()], Now(vec![1]), Now(vec![1])),
            (vec![right(), other_half()], Several, Now(vec![0])),
            (vec![half(), other()], Several, AtTheEnd(vec![0])),
            (
                vec![half(), other_without(), bare("b")],
                Now(vec![0, 2]),
                Now(vec![0, 2]),
            ),
        ];
        for (disks, named, identified) in table {
            assert_eq!(verdict(&disks, &by_name()), named, "by name: {disks:?}");
            let found = verdict(&disks, &by_uuid());
            assert_eq!(found, identified, "by UUID: {disks:?}");
        }
    }

    #[test]
    fn the_newest_metadata_count() {
        let disks = |old, new| {
            vec![
                disk("a", VGID, old, &["a"], &["L"]),
                disk("b", VGID, new, &["a", "b", "c"], &["L"]),
            ]
        };
        for request in [by_name(), by_uuid()] {
            assert_eq!(verdict(&disks(1, 2), &request), AtTheEnd(vec![0, 1]));
            assert_eq!(verdict(&disks(2, 1), &request), Now(vec![0]));
        }
    }

    #[test]
    fn another_group_of_that_name_is_told_apart() {
        let other = disk("x", OTHER, 1, &["x"], &["L"]);
        let disks = Disks::from([(PathBuf::from("/dev/vdb"), other)]);
        assert_eq!(
            describe(&disks, &by_uuid()),
            format!("another group of that name, {OTHER}, is on /dev/vdb")
        );
        assert_eq!(
            describe(&disks, &by_name()),
            "1 of its 1 disks are there: /dev/vdb"
        );
    }

    fn of_volumes(volumes: &[(String, Role)]) -> Group {
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
        let group = of_volumes(&[
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
        let message = find(&request("x"), &of_volumes(&many))
            .unwrap_err()
            .to_string();
        assert!(message.len() < 900, "{}", message.len());
        assert!(message.ends_with("Base-0.500 and 480 older"), "{message}");
    }
}
