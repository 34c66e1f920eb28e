//! What is wrong with a group and its volumes, from what was read of them: no input or output.

use std::collections::BTreeMap;

use super::finding::{Findings, Repair};
use crate::admin::text;
use crate::lvm::AutoExtension;
use crate::model::layout::{Group, Role, Volume};
use crate::model::name::{LvName, VgName};
use crate::model::pool::{self, Mismatch};
use crate::model::{saved, volume};

/// What is wrong with a group that was interrupted while it was made.
pub fn find_unfinished(group: &Group, findings: &mut Findings) {
    let problem = "was interrupted while it was made";
    let is_of_ours = |role| matches!(role, Role::Pool | Role::Volume | Role::Incomplete);
    if group.volumes.iter().all(|v| is_of_ours(v.role)) {
        findings.add(&group.name, problem, Repair::RemoveGroup);
    } else {
        let advice = "it has other volumes; look at it with lvs(8)";
        findings.advise(&group.name, problem, advice);
    }
}

/// Which disks of a group are not seen: `seen` is the group as lvm2 shows it, and `hidden` as it is when the
/// devices file hides nothing.
pub fn find_lost_disks(
    vg: &VgName,
    seen: Option<&Group>,
    hidden: Option<&Group>,
    findings: &mut Findings,
) {
    let is_hidden = match (seen, hidden) {
        (Some(seen), Some(all)) => all.missing_pvs < seen.missing_pvs,
        (None, all) => all.is_some(),
        (Some(_), None) => false,
    };
    if is_hidden {
        let problem = "has disks that the LVM devices file does not name";
        findings.add(vg, problem, Repair::ImportDevices);
    } else if let Some(group) = seen {
        let problem = format!("{} of its disks are missing", group.missing_pvs);
        findings.advise(vg, &problem, "connect them; vgreduce(8) if they are lost");
    }
}

/// What is wrong with the volumes of a group. `is_being_made` tells which of the incomplete ones a command is
/// making now.
pub fn find(group: &Group, is_being_made: &dyn Fn(&Volume) -> bool, findings: &mut Findings) {
    for volume in group.with_role(Role::Incomplete) {
        if is_being_made(volume) {
            continue;
        }
        if let Ok(name) = volume.name.parse() {
            let problem = "was interrupted while it was made";
            findings.add(&volume.name, problem, Repair::RemoveVolume(name));
        }
    }
    if let Some(swap) = saved::begun(group).first() {
        let problem =
            "is a snapshot that was taking the place of a volume when a rollback was interrupted";
        findings.add(&swap.saved.mount.name, problem, Repair::Exchange);
    }
    for name in saved::orphans(group) {
        let problem = "is a snapshot from before an update whose layer is gone";
        findings.advise(&name, problem, "lvremove(8) removes it");
    }
    volume::mounts_of(group, &mut |problem| {
        findings.advise(
            &group.name,
            problem,
            "take the tag off with `lvchange --deltag`",
        );
    });
    for name in group.bootable() {
        let Some(volume) = group.volume(name.as_str()) else {
            continue;
        };
        if !volume.skips_activation {
            let problem = "is activated together with its group";
            findings.add(&name, problem, Repair::SkipActivation(name.clone()));
        }
        if volume.role == Role::Base && volume.writable {
            let problem = "is a base, but writable";
            findings.add(&name, problem, Repair::MakeReadOnly(name.clone()));
        }
        if volume.role == Role::Layer {
            find_base_of(group, &name, volume, findings);
        }
    }
}

fn find_base_of(group: &Group, name: &LvName, layer: &Volume, findings: &mut Findings) {
    match group.base_of(layer) {
        None => {
            let of = layer.of().unwrap_or("a base");
            let problem = format!("is a layer of {of}, which is not there");
            let advice = format!(
                "if {of} was renamed, name it so again with lvrename(8); else nothing depends on it, and \
                 `imgbased-helper layer remove {name}` removes the layer"
            );
            findings.advise(name, &problem, &advice);
        }
        Some(base) if name.layer_number(&base).is_none() => {
            let problem = format!("is tagged as a layer of {base}, but not named like one");
            findings.advise(name, &problem, "rename it with lvrename(8)");
        }
        Some(_) => {}
    }
}

/// Volumes that have the same filesystem UUID, which `uuids` names with each UUID.
pub fn find_shared(uuids: &BTreeMap<String, Vec<String>>, findings: &mut Findings) {
    for (uuid, names) in uuids.iter().filter(|(_, names)| names.len() > 1) {
        let problem = format!("have the same filesystem UUID {uuid}");
        let advice = "`tune2fs -U random` or `xfs_admin -U generate` on one that is not mounted";
        findings.advise(&names.join(" "), &problem, advice);
    }
}

/// What only a look at the pool's settings shows.
pub fn find_in_pool(group: &Group, extension: AutoExtension, findings: &mut Findings) {
    let Some((pool, name)) = group.pool().and_then(|p| Some((p, p.name.parse().ok()?))) else {
        let problem = "has no thin pool with the tag imgbased:pool";
        let advice = "where it has one, `lvchange --addtag imgbased:pool` marks that";
        findings.advise(&group.name, problem, advice);
        return;
    };
    if let Err(error) = pool::room(group) {
        let advice = "extend it with lvextend(8) or remove layers";
        findings.advise(&group.name, &format!("{error:#}"), advice);
    }
    let extend = Repair::AutoExtend(name);
    let wanted = (pool.size / 100).saturating_mul(extension.percent);
    if extension.threshold >= 100 {
        let problem =
            "is never extended by itself, and would make all layers read-only when it is full";
        findings.add(&pool.name, problem, extend);
    } else if pool.active && !pool.monitored {
        let problem = "is not watched, so nothing extends it before it is full";
        findings.add(&pool.name, problem, extend);
    } else if group.free < wanted.max(1) {
        let problem = format!(
            "cannot be extended: its group has {} left, and {} are needed",
            text::size(group.free),
            text::size(wanted)
        );
        findings.advise(&pool.name, &problem, "add a disk with vgextend(8)");
    }
}

/// What is wrong with the volumes that `status` tells as well, as it shows in every report. `mismatch` is that of
/// the pool.
pub fn find_at_once(group: &Group, mismatch: Option<&Mismatch>, findings: &mut Findings) {
    if let Some(pool) = group.pool() {
        if let Some(mismatch) = mismatch {
            let advice = mismatch.advice(&group.name, &pool.name);
            findings.advise(&pool.name, &mismatch.to_string(), &advice);
        }
        if let Some(fault) = pool.fault {
            let advice = fault.advice(&group.name, &pool.name);
            findings.advise(&pool.name, &fault.to_string(), &advice);
        }
        if !pool.zeroes {
            let problem = "does not zero new chunks: what was removed can show up in new volumes";
            let advice = format!(
                "`lvchange --zero y {}/{}` has it zero them",
                group.name, pool.name
            );
            findings.advise(&pool.name, problem, &advice);
        }
    }
    for volume in group.volumes.iter().filter(|volume| volume.is_merging) {
        let problem = "a snapshot is being merged into it, or will be when it is activated next: then it holds what \
                       the snapshot holds";
        let advice = "let that come to its end, which takes no command; lvconvert(8), --merge";
        findings.advise(&volume.name, problem, advice);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::admin::check::finding::Finding;
    use crate::model::percent::Percent;
    use crate::model::pool::Fault;

    pub fn volume(name: &str, tags: &[&str]) -> Volume {
        Volume {
            skips_activation: true,
            zeroes: true,
            ..Volume::tagged(name, tags)
        }
    }

    pub fn group(volumes: Vec<Volume>) -> Group {
        Group {
            free: 1,
            ..Group::with(volumes)
        }
    }

    /// What was found, a line each.
    fn lines(find: impl FnOnce(&mut Findings)) -> Vec<String> {
        let mut findings = Findings::default();
        find(&mut findings);
        let line = |f: Finding| format!("{}: {}", f.subject, f.repair);
        findings.0.into_iter().map(line).collect()
    }

    #[test]
    fn each_wrong_volume_is_found_with_its_repair() {
        let base = || volume("Base-0", &["imgbased:base"]);
        let layer = |name: &str| volume(name, &["imgbased:layer", "imgbased:of=Base-0"]);
        for (volume, expected) in [
            (layer("Base-0.1"), ""),
            (volume("data", &[]), ""),
            (
                volume("home", &["imgbased:volume", "imgbased:mount=/home"]),
                "",
            ),
            (
                volume(
                    "home",
                    &[
                        "imgbased:volume",
                        "imgbased:mount=/home",
                        "imgbased:snapshot=/home",
                        "imgbased:before=Base-1.1",
                    ],
                ),
                "home: have all snapshots from before that layer take their places",
            ),
            (
                volume("etc", &["imgbased:volume", "imgbased:mount=/etc"]),
                "HostVG: take the tag off with `lvchange --deltag`",
            ),
            (
                volume("Base-1", &["imgbased:base", "imgbased:incomplete"]),
                "Base-1: remove the volume Base-1",
            ),
            (
                volume("made", &["imgbased:incomplete", "imgbased:maker=now"]),
                "",
            ),
            (
                Volume {
                    skips_activation: false,
                    ..layer("Base-0.1")
                },
                "Base-0.1: have Base-0.1 stay inactive until it is booted",
            ),
            (
                Volume {
                    writable: true,
                    ..volume("Base-1", &["imgbased:base"])
                },
                "Base-1: make the volume Base-1 read-only",
            ),
            (layer("odd"), "odd: rename it with lvrename(8)"),
            (
                volume("Base-9.1", &["imgbased:layer", "imgbased:of=Base-9"]),
                "Base-9.1: if Base-9 was renamed, name it so again with lvrename(8); else nothing depends on it, and \
                 `imgbased-helper layer remove Base-9.1` removes the layer",
            ),
        ] {
            let group = group(vec![base(), volume]);
            let is_made = |volume: &Volume| volume.has_tag("imgbased:maker=now");
            let found = lines(|findings| find(&group, &is_made, findings));
            assert_eq!(found.join("\n"), expected);
        }
    }

    #[test]
    fn disks_are_hidden_or_missing() {
        let with = |missing_pvs| Group {
            missing_pvs,
            ..group(Vec::new())
        };
        for (seen, hidden, expected) in [
            (None, None, ""),
            (None, Some(0), "HostVG: enter them in the devices file"),
            (Some(1), Some(0), "HostVG: enter them in the devices file"),
            (
                Some(1),
                Some(1),
                "HostVG: connect them; vgreduce(8) if they are lost",
            ),
            (
                Some(1),
                None,
                "HostVG: connect them; vgreduce(8) if they are lost",
            ),
        ] {
            let (seen, hidden) = (seen.map(with), hidden.map(with));
            let vg = "HostVG".parse().unwrap();
            let found = lines(|f| find_lost_disks(&vg, seen.as_ref(), hidden.as_ref(), f));
            assert_eq!(found.join("\n"), expected);
        }
    }

    #[test]
    fn a_group_that_was_not_finished_is_removed_unless_it_has_other_volumes() {
        let pool = || volume("ImagePool", &["imgbased:pool"]);
        let remove = "HostVG: remove the group, so that its disks are empty again";
        let look = "HostVG: it has other volumes; look at it with lvs(8)";
        for (volumes, expected) in [
            (vec![pool()], remove),
            (vec![pool(), volume("data", &[])], look),
            (vec![pool(), volume("Base-0", &["imgbased:base"])], look),
        ] {
            let found = lines(|findings| find_unfinished(&group(volumes), findings));
            assert_eq!(found, [expected]);
        }
    }

    #[test]
    fn what_can_become_of_a_pool_is_found() {
        const EXTENT: u64 = 4 << 20;
        const TWENTIETH: u64 = 13 * EXTENT;
        let pool = Volume {
            active: true,
            monitored: true,
            data_percent: Some(Percent::new(10)),
            metadata_percent: Some(Percent::new(10)),
            size: 1 << 30,
            metadata_size: 1 << 26,
            ..volume("ImagePool", &["imgbased:pool"])
        };
        let extend = "ImagePool: have ImagePool extended before it is full";
        let extension = |threshold| AutoExtension {
            threshold,
            percent: 5,
        };
        let full = "HostVG: extend it with lvextend(8) or remove layers";
        let full_group = "ImagePool: add a disk with vgextend(8)";
        for (pool, threshold, free, expected) in [
            (pool.clone(), 80, TWENTIETH, ""),
            (pool.clone(), 100, TWENTIETH, extend),
            // lvm2 does not extend by a part of what is wanted.
            (pool.clone(), 80, TWENTIETH - EXTENT, full_group),
            (pool.clone(), 80, 0, full_group),
            (
                Volume {
                    monitored: false,
                    ..pool.clone()
                },
                80,
                TWENTIETH,
                extend,
            ),
            (
                Volume {
                    active: false,
                    monitored: false,
                    data_percent: None,
                    metadata_percent: None,
                    ..pool.clone()
                },
                80,
                TWENTIETH,
                "",
            ),
            (
                Volume {
                    data_percent: Some(Percent::new(95)),
                    ..pool.clone()
                },
                80,
                TWENTIETH,
                full,
            ),
        ] {
            let group = Group {
                free,
                ..group(vec![pool])
            };
            let found = lines(|findings| find_in_pool(&group, extension(threshold), findings));
            assert_eq!(found.join("\n"), expected);
        }
        let found = lines(|findings| find_in_pool(&group(Vec::new()), extension(100), findings));
        let mark = "HostVG: where it has one, `lvchange --addtag imgbased:pool` marks that";
        assert_eq!(found, [mark]);
    }

    #[test]
    fn status_tells_of_a_pool_and_of_a_merge() {
        let pool = volume("ImagePool", &["imgbased:pool"]);
        let merging = Volume {
            is_merging: true,
            ..volume("Base-0.1", &["imgbased:layer"])
        };
        let careless = Volume {
            zeroes: false,
            ..pool.clone()
        };
        let read_only = Volume {
            fault: Some(Fault::ReadOnly),
            ..pool.clone()
        };
        let mismatch = Mismatch {
            recorded: 9,
            found: Some(3),
        };
        for (volume, mismatch, expected) in [
            (&pool, None, ""),
            (&read_only, None, "ImagePool: restart the host"),
            (
                &careless,
                None,
                "ImagePool: `lvchange --zero y HostVG/ImagePool` has it zero them",
            ),
            (&pool, Some(&mismatch), "ImagePool: "),
            (&merging, None, "Base-0.1: let that come to its end"),
            // Without a pool there is nothing to be told of it.
            (
                &merging,
                Some(&mismatch),
                "Base-0.1: let that come to its end",
            ),
        ] {
            let group = group(vec![volume.clone()]);
            let found = lines(|findings| find_at_once(&group, mismatch, findings)).join("\n");
            assert!(found.starts_with(expected), "{found}");
            assert_eq!(found.is_empty(), expected.is_empty(), "{found}");
        }
    }

    #[test]
    fn only_what_several_volumes_have_is_shared() {
        let uuids = BTreeMap::from([
            ("a".to_owned(), vec!["Base-0.1".to_owned()]),
            (
                "b".to_owned(),
                vec!["Base-0.2".to_owned(), "Base-0.3".to_owned()],
            ),
        ]);
        let mut findings = Findings::default();
        find_shared(&uuids, &mut findings);
        let subjects: Vec<&str> = findings.0.iter().map(|f| f.subject.as_str()).collect();
        assert_eq!(subjects, ["Base-0.2 Base-0.3"]);
    }
}
