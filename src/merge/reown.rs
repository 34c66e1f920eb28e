//! Gives the files of a new base the numbers that their owners have on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;

use anyhow::{Context, Result};

use super::users::Ids;
use crate::tree::{Below, Dir, Meta, Place, Stat, Xattrs, escaped, walk};

/// ACLs are lists of entries of 8 bytes behind a version (`linux/posix_acl_xattr.h`).
const ACLS: [&str; 2] = ["system.posix_acl_access", "system.posix_acl_default"];
const ACL_HEADER: usize = 4;
const ACL_ENTRY: usize = 8;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// Gives each file of a root, the copy of a new base, its owner's number on the host, also in ACLs. Set-uid bits
/// and capabilities, which a new owner takes away, stay. Returns how many files were changed.
pub fn reown(root: &Dir, ids: &Ids) -> Result<u64> {
    reown_but(root, ids, OsStr::new(""))
}

/// The same without what has this name in the root.
pub fn reown_but(root: &Dir, ids: &Ids, left_out: &OsStr) -> Result<u64> {
    if ids.users.is_empty() && ids.groups.is_empty() {
        return Ok(0);
    }
    let mut seen = BTreeSet::new();
    let mut changed = 0;
    walk(&[Some(root.again()?)], None, &mut |visit| {
        if visit.path == left_out {
            return Ok(Below::Skip);
        }
        if let [Some(place)] = visit.places {
            // A second name of a file that has its new owner already.
            let is_first = place.stat.links < 2
                || place.stat.kind == crate::tree::Kind::Dir
                || seen.insert(place.stat.id);
            if is_first
                && reown_one(place, ids)
                    .with_context(|| format!("cannot give /{} its owner", escaped(visit.path)))?
            {
                changed += 1;
            }
        }
        Ok(Below::Visit)
    })?;
    Ok(changed)
}

fn reown_one(place: &Place, ids: &Ids) -> Result<bool> {
    let Some(node) = place.node()? else {
        return Ok(false);
    };
    let (stat, xattrs) = (node.stat, node.xattrs()?);
    let meta = reowned(&stat, &xattrs, ids);
    if (meta.uid, meta.gid, &meta.xattrs) == (stat.uid, stat.gid, &xattrs) {
        return Ok(false);
    }
    place.dir.set_meta(place.name, &meta, None)?;
    Ok(true)
}

/// What a file has when it belongs to the same names elsewhere.
pub(super) fn reowned(stat: &Stat, xattrs: &Xattrs, ids: &Ids) -> Meta {
    let map = |ids: &BTreeMap<u32, u32>, id: u32| ids.get(&id).copied().unwrap_or(id);
    Meta {
        uid: map(&ids.users, stat.uid),
        gid: map(&ids.groups, stat.gid),
        mode: stat.mode,
        xattrs: mapped(xattrs.clone(), ids),
    }
}

/// Attributes whose ACLs name the same users and groups elsewhere.
pub(super) fn mapped(mut xattrs: Xattrs, ids: &Ids) -> Xattrs {
    for (name, value) in &mut xattrs {
        if ACLS.iter().any(|acl| name == acl) {
            map_acl(value, ids);
        }
    }
    xattrs
}

fn map_acl(acl: &mut [u8], ids: &Ids) {
    for entry in acl
        .get_mut(ACL_HEADER..)
        .unwrap_or_default()
        .chunks_exact_mut(ACL_ENTRY)
    {
        let [tag_low, tag_high, _, _, id @ ..] = entry else {
            continue;
        };
        let ids = match u16::from_le_bytes([*tag_low, *tag_high]) {
            ACL_USER => &ids.users,
            ACL_GROUP => &ids.groups,
            _ => continue,
        };
        let old = id
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        if let Some(new) = ids.get(&old) {
            id.copy_from_slice(&new.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_users_and_groups_of_an_acl_are_mapped() {
        let entry =
            |tag: u16, id: u32| [&tag.to_le_bytes()[..], &[6, 0], &id.to_le_bytes()].concat();
        let acl = |user, group| {
            let entries = [
                entry(1, 5),
                entry(2, user),
                entry(4, 5),
                entry(8, group),
                entry(32, 5),
            ];
            [vec![2, 0, 0, 0], entries.concat()].concat()
        };
        let ids = Ids {
            users: [(5, 70_000)].into_iter().collect(),
            groups: [(5, 6), (6, 5)].into_iter().collect(),
        };
        let mut mapped = acl(5, 5);
        map_acl(&mut mapped, &ids);
        assert_eq!(mapped, acl(70_000, 6));
        map_acl(&mut [2, 0], &ids);
    }
}
