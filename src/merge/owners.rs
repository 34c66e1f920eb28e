//! Who owns files: by name on each side, by number on the host.

use std::collections::BTreeMap;

use super::decide::Owner;
use super::reown::mapped;
use super::users::{GROUP, Ids, Merged, Name, PASSWD, UserFiles, numbered};
use super::{LAYER, NEW};
use crate::tree::{Meta, Stat, Xattrs};

/// The users and groups of the sides of a merge, and of what it makes of them.
#[derive(Clone)]
pub struct Owners {
    sides: [Names; 3],
    /// Those of the host, and beside them what only the new base has.
    host: Names,
    users: BTreeMap<Name, u32>,
    groups: BTreeMap<Name, u32>,
    /// Which numbers of each side are other ones on the host.
    ids: [Ids; 3],
}

impl Owners {
    pub fn of(files: &[UserFiles; 3], merged: &Merged) -> Self {
        let mut sides = files.each_ref().map(Names::of);
        let [old, layer, new] = &mut sides;
        for side in [&mut *old, &mut *new] {
            side.rename(merged);
        }
        let ids = [old.to_host(merged), Ids::default(), merged.ids.clone()];
        // Files of users that the layer has deleted are still those users'.
        layer.add(old);
        let mut host = Names::of(&merged.files);
        host.add(new);
        Self {
            sides,
            host,
            users: merged.users.clone(),
            groups: merged.groups.clone(),
            ids,
        }
    }

    /// The same where the files of the new base have the numbers of the host already.
    pub fn on_host(&self) -> Self {
        let mut owners = self.clone();
        owners.sides[NEW] = self.host.clone();
        owners.ids[NEW] = Ids::default();
        owners
    }

    /// The attributes of a file of a side, with the numbers that those have on the host whom its ACLs name.
    pub fn xattrs(&self, side: usize, xattrs: Xattrs) -> Xattrs {
        mapped(xattrs, &self.ids[side])
    }

    /// Who owns a file of a side.
    pub fn owner(&self, side: usize, stat: &Stat) -> Owner {
        let names = &self.sides[side];
        let name = |names: &BTreeMap<u32, String>, id: u32| {
            names.get(&id).cloned().unwrap_or_else(|| format!("#{id}"))
        };
        Owner {
            user: name(&names.users, stat.uid),
            group: name(&names.groups, stat.gid),
        }
    }

    /// Whether a file of a base and one of the layer have the same owner.
    pub fn is_one(&self, side: usize, of_base: &Stat, layer: &Stat) -> bool {
        (of_base.uid, of_base.gid) == (layer.uid, layer.gid)
            || self.owner(side, of_base) == self.owner(LAYER, layer)
    }

    /// Whether the host has this owner.
    pub fn has(&self, owner: &Owner) -> bool {
        let is_there = |name: &str, names: &BTreeMap<Name, u32>| {
            name.starts_with('#') || names.contains_key(name.as_bytes())
        };
        is_there(&owner.user, &self.users) && is_there(&owner.group, &self.groups)
    }

    /// With the numbers that names have on the host. What belongs to nobody there is root's, without the rights
    /// that others would have had by it.
    pub fn meta(&self, owner: &Owner, mode: u32) -> Meta {
        let id = |name: &str, names: &BTreeMap<Name, u32>| match name.strip_prefix('#') {
            Some(number) => number.parse().ok(),
            None => names.get(name.as_bytes()).copied(),
        };
        let (uid, gid) = (id(&owner.user, &self.users), id(&owner.group, &self.groups));
        let is_known = uid.is_some() && gid.is_some();
        Meta {
            uid: uid.unwrap_or(0),
            gid: gid.unwrap_or(0),
            mode: if is_known { mode } else { mode & !0o6000 },
            xattrs: BTreeMap::new(),
        }
    }
}

/// Users and groups by number.
#[derive(Clone)]
struct Names {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Names {
    fn of(files: &UserFiles) -> Self {
        let names = |file: usize| {
            let content = files.0[file].as_deref().unwrap_or_default();
            let mut names = BTreeMap::new();
            for (name, id) in numbered(file, content) {
                // An image can have another name for root before it.
                if id == 0 && name == "root" {
                    names.insert(id, name);
                } else {
                    names.entry(id).or_insert(name);
                }
            }
            names
        };
        Self {
            users: names(PASSWD),
            groups: names(GROUP),
        }
    }

    /// Has the users and groups be called as in the layer.
    fn rename(&mut self, merged: &Merged) {
        for (names, renamed) in [
            (&mut self.users, &merged.renamed_users),
            (&mut self.groups, &merged.renamed_groups),
        ] {
            for name in names.values_mut() {
                if let Some(now) = renamed.get(name) {
                    name.clone_from(now);
                }
            }
        }
    }

    /// Which of the numbers are other ones on the host.
    fn to_host(&self, merged: &Merged) -> Ids {
        let moved = |names: &BTreeMap<u32, String>, host: &BTreeMap<Name, u32>| {
            let of_host = |(id, name): (&u32, &String)| Some((*id, *host.get(name.as_bytes())?));
            let all = names.iter().filter_map(of_host);
            all.filter(|(id, now)| id != now).collect()
        };
        Ids {
            users: moved(&self.users, &merged.users),
            groups: moved(&self.groups, &merged.groups),
        }
    }

    /// Adds what the other has for numbers that are free here.
    fn add(&mut self, other: &Self) {
        for (names, other) in [
            (&mut self.users, &other.users),
            (&mut self.groups, &other.groups),
        ] {
            for (id, name) in other {
                names.entry(*id).or_insert_with(|| name.clone());
            }
        }
    }
}
