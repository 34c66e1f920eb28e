//! Which volume group is meant, of those that the disks describe.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::cmdline::Request;
use crate::lvm::disk::{Metadata, PhysicalVolume};
use crate::model::layout::{Role, bootable};
use crate::model::name::{LvName, VgName};

/// How many names an error lists. A record of the kernel's log is short.
const NAMES_MAX: usize = 20;

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
    pub fn has(&self, layer: &LvName) -> bool {
        let volumes = &self.metadata.volumes;
        volumes.iter().any(|(name, _)| name == layer.as_str())
    }
}

/// The groups that the disks describe; there can be two of one name.
pub fn groups(disks: &BTreeMap<PathBuf, PhysicalVolume>) -> Vec<Group> {
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

/// The group to go on with, if it is clear already: the one with the layer; where none has it, one
/// that is complete, for the error. Refuses if two have it.
pub fn choose(groups: Vec<Group>, vg: &VgName, layer: &LvName) -> Result<Option<Group>> {
    if groups.iter().filter(|group| group.has(layer)).count() > 1 {
        let uuids: Vec<&str> = groups.iter().map(|g| g.metadata.uuid.as_str()).collect();
        bail!(
            "there are several volume groups {vg} with {layer}: {}; take out the disks of one, or rename it with vgrename(8)",
            uuids.join(", ")
        );
    }
    let is_whole = groups.iter().all(|group| group.missing == 0);
    let mut complete: Vec<Group> = groups.into_iter().filter(|g| g.missing == 0).collect();
    if let Some(at) = complete.iter().position(|group| group.has(layer)) {
        return Ok(Some(complete.swap_remove(at)));
    }
    Ok(complete.pop().filter(|_| is_whole))
}

pub fn describe(disks: &BTreeMap<PathBuf, PhysicalVolume>) -> String {
    let names = |disks: &mut dyn Iterator<Item = &PathBuf>| {
        let names: Vec<String> = disks.map(|d| d.display().to_string()).collect();
        names.join(" ")
    };
    if disks.is_empty() {
        return "no disk with an LVM physical volume was seen".to_owned();
    }
    let groups = groups(disks);
    if groups.is_empty() {
        let seen = names(&mut disks.keys());
        return format!("physical volumes of other groups were seen on {seen}");
    }
    let group = |group: &Group| {
        let (all, devices) = (group.metadata.disks.len(), &group.devices);
        let there = names(&mut devices.iter());
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
            }),
        }
    }

    fn bare(uuid: &str) -> PhysicalVolume {
        PhysicalVolume {
            uuid: uuid.to_owned(),
            metadata: None,
        }
    }

    /// What is chosen when these disks are there: the devices of the group, or the error.
    fn chosen(disks: Vec<PhysicalVolume>) -> Result<Option<Vec<String>>, String> {
        let named = disks.into_iter().enumerate();
        let disks = named.map(|(n, disk)| (PathBuf::from(n.to_string()), disk));
        let groups = groups(&disks.collect());
        let (vg, layer) = ("HostVG".parse().unwrap(), "L".parse().unwrap());
        let name = |device: &PathBuf| device.display().to_string();
        match choose(groups, &vg, &layer) {
            Ok(group) => Ok(group.map(|group| group.devices.iter().map(name).collect())),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_group_is_chosen_when_all_its_disks_are_there() {
        let devices = |names: &[&str]| Ok(Some(names.iter().map(|&n| n.to_owned()).collect()));
        let both = ["a", "b"];
        assert_eq!(chosen(vec![]), Ok(None));
        assert_eq!(chosen(vec![bare("x")]), Ok(None));
        assert_eq!(
            chosen(vec![disk("a", "G", 1, &["a"], &["L"])]),
            devices(&["0"])
        );
        assert_eq!(chosen(vec![disk("a", "G", 1, &both, &["L"])]), Ok(None));
        // The second disk has no copy of the metadata, the third is of another group.
        let disks = vec![disk("a", "G", 1, &both, &["L"]), bare("b"), bare("c")];
        assert_eq!(chosen(disks), devices(&["0", "1"]));
        // For the error.
        assert_eq!(
            chosen(vec![disk("a", "G", 1, &["a"], &["M"])]),
            devices(&["0"])
        );
    }

    #[test]
    fn the_newest_metadata_count() {
        let disks = |old, new| {
            vec![
                disk("a", "G", old, &["a"], &["L"]),
                disk("b", "G", new, &["a", "b", "c"], &["L"]),
            ]
        };
        assert_eq!(chosen(disks(1, 2)), Ok(None));
        assert_eq!(chosen(disks(2, 1)), Ok(Some(vec!["0".to_owned()])));
    }

    #[test]
    fn of_two_groups_with_one_name_the_one_with_the_layer_counts() {
        let of = |disk_uuid, group, layer| disk(disk_uuid, group, 1, &[disk_uuid], &[layer]);
        let one = chosen(vec![of("a", "G", "M"), of("b", "H", "L")]);
        assert_eq!(one, Ok(Some(vec!["1".to_owned()])));
        let both = chosen(vec![of("a", "G", "L"), of("b", "H", "L")]);
        assert!(
            both.unwrap_err()
                .contains("several volume groups HostVG with L: G, H")
        );
        // The one that is not complete yet may have it.
        let waits = vec![of("a", "G", "M"), disk("b", "H", 1, &["b", "c"], &["L"])];
        assert_eq!(chosen(waits), Ok(None));
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
