//! Users and groups: passwd, group, shadow, gshadow, subuid and subgid, merged by name as one set.
//!
//! The numbers of the host stay: files on volumes that layers share carry them. What is new in the new base gets
//! its own number if that is free. In the end each name is there once, and each user or group whose password is
//! elsewhere has a line there: systemd-sysusers(8) and others stop at the first that has none.

mod look;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use super::lines::split;
use super::{LAYER, NEW, OLD};
use table::{FIELDS, Fields, NOBODY, number, range};

pub(super) use look::numbered;
pub use look::{Moved, entries, faults, moved};
pub use table::{FILES, Name};
pub(super) use table::{GROUP, GSHADOW, PASSWD, SHADOW, Table, id_of, list, lists_of, shown};

/// Numbers from here on are of people.
const FIRST_PERSON: u32 = 1000;
const LAST_PERSON: u32 = 60000;

/// The content of the files of one side; `None` for one that is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserFiles(pub [Option<Vec<u8>>; 6]);

impl UserFiles {
    /// The lines of names that other files do not have, and of groups that they have the members whom those lack.
    pub fn lacked_by(&self, other: &Self) -> Self {
        fn name(line: &[u8]) -> &[u8] {
            let end = line.iter().position(|byte| *byte == b':');
            &line[..end.unwrap_or(line.len())]
        }
        let mut lacked = self.clone();
        for (file, (content, other)) in lacked.0.iter_mut().zip(&other.0).enumerate() {
            let (Some(lines), Some(other)) = (&*content, other) else {
                continue;
            };
            let names: BTreeSet<&[u8]> = split(other).map(name).collect();
            let table = Table::parse(file, other);
            let lines = split(lines).filter_map(|line| {
                if names.contains(name(line)) {
                    lacking_members(file, line, table.get(name(line))?)
                } else {
                    Some(line.to_vec())
                }
            });
            *content = Some(
                lines
                    .flat_map(|line| [&line, &b"\n"[..]].concat())
                    .collect(),
            );
        }
        lacked
    }
}

/// The line of a group with nothing but the members that another line of the group lacks; nothing if it has them all.
fn lacking_members(file: usize, line: &[u8], other: &Fields) -> Option<Vec<u8>> {
    let mut fields: Fields = line
        .split(|byte| *byte == b':')
        .map(<[u8]>::to_vec)
        .collect();
    fields.get_mut(1)?.clear();
    let mut is_any = false;
    for at in lists_of(file) {
        let (field, others) = (fields.get_mut(*at)?, list(&other[*at]));
        let mut members = list(field);
        members.retain(|name| !others.contains(name));
        is_any |= !members.is_empty();
        *field = members.join(&b',');
    }
    is_any.then(|| fields.join(&b':'))
}

/// Which numbers of users and groups in the new base are other ones on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    pub users: BTreeMap<u32, u32>,
    pub groups: BTreeMap<u32, u32>,
}

impl Ids {
    /// Which numbers one root has for the names of another. What belongs to names that it does not have is root's.
    pub fn between(from: &UserFiles, to: &UserFiles) -> Self {
        let ids = |file: usize| {
            let [from, to] = [from, to].map(|files| {
                let content = files.0[file].as_deref().unwrap_or_default();
                Table::parse(file, content)
            });
            let mut ids = BTreeMap::new();
            // Whatever that number is called, it has all rights on both.
            for fields in from.entries().filter(|fields| id_of(fields) != 0) {
                // A number can have several names.
                let id = ids.entry(id_of(fields)).or_insert(0);
                if *id == 0 {
                    *id = to.get(&fields[0]).map_or(0, id_of);
                }
            }
            ids
        };
        Self {
            users: ids(PASSWD),
            groups: ids(GROUP),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    pub files: UserFiles,
    pub ids: Ids,
    /// What both sides have changed and is as in the layer, and what could not be taken: the number of the
    /// file, and what to say.
    pub conflicts: Vec<(usize, String)>,
    /// The numbers of the users and groups that are there.
    pub users: BTreeMap<Name, u32>,
    pub groups: BTreeMap<Name, u32>,
    /// What users and groups of the old base are called in the layer, which has renamed them, as they are shown.
    pub renamed_users: BTreeMap<String, String>,
    pub renamed_groups: BTreeMap<String, String>,
}

/// The system's own numbers, as login.defs(5) sets them.
#[derive(Clone, Copy, Debug)]
pub struct SystemIds {
    users: (u32, u32),
    groups: (u32, u32),
}

impl SystemIds {
    pub fn of(login_defs: &[u8]) -> Self {
        let text = String::from_utf8_lossy(login_defs);
        let value = |key: &str, default: u32| {
            let of_line = |line: &str| {
                let mut words = line.split_ascii_whitespace();
                (words.next() == Some(key)).then(|| words.next()?.parse().ok())?
            };
            let value = text.lines().find_map(of_line).unwrap_or(default);
            value.min(FIRST_PERSON - 1)
        };
        Self {
            users: (value("SYS_UID_MIN", 100), value("SYS_UID_MAX", 999)),
            groups: (value("SYS_GID_MIN", 100), value("SYS_GID_MAX", 999)),
        }
    }
}

/// Merges the files of the old base, the layer and the new base. One that the layer does not have as a file
/// counts as unchanged there: nobody deletes all users.
pub fn merge_users([old, layer, new]: [&UserFiles; 3], system: SystemIds) -> Merged {
    let mut layer = layer.clone();
    for (content, old) in layer.0.iter_mut().zip(&old.0) {
        if content.is_none() {
            content.clone_from(old);
        }
    }
    let sides = [old, &layer, new];
    let tables = sides.map(|files| {
        let mut file = 0..;
        files.0.each_ref().map(|content| {
            let file = file.next().unwrap_or_default();
            Table::parse(file, content.as_deref().unwrap_or_default())
        })
    });
    let mut merge = Merge {
        tables: &tables,
        users: BTreeSet::new(),
        merged: Merged::default(),
    };
    let groups = merge.numbered(GROUP, system.groups);
    let users = merge.numbered(PASSWD, system.users);
    let names = users.iter().map(|(name, _)| name.clone());
    merge.users.extend(names);
    let groups = merge.groups(&groups);
    let users = merge.users(&users, &groups);
    let shadow = merge.shadow(&users);
    let gshadow = merge.gshadow(&groups);
    merge.note_ids(&users, &groups);
    let mut finals = [users, groups, shadow, gshadow, Vec::new(), Vec::new()];
    for file in [4, 5] {
        finals[file] = merge.ranges(file);
    }
    for (file, entries) in finals.into_iter().enumerate() {
        let content = |side: usize| sides[side].0[file].as_ref();
        let is_there = content(LAYER).is_some() || content(NEW).is_some();
        if !is_there && (entries.is_empty() || file != SHADOW) {
            continue;
        }
        let is_unchanged = content(LAYER) == content(OLD);
        let side = match (content(LAYER), content(NEW)) {
            (Some(_), Some(_)) if is_unchanged => NEW,
            (Some(_), _) => LAYER,
            _ => NEW,
        };
        merge.merged.files.0[file] = Some(tables[side][file].with(entries));
    }
    merge.merged
}

struct Merge<'a> {
    tables: &'a [[Table<'a>; 6]; 3],
    /// The names that there will be.
    users: BTreeSet<Name>,
    merged: Merged,
}

impl<'a> Merge<'a> {
    fn table(&self, side: usize, file: usize) -> &'a Table<'a> {
        &self.tables[side][file]
    }

    /// The names that there will be, each with its number: those of the layer, also where their package is gone
    /// since files elsewhere can be theirs, and what is new in the new base.
    fn numbered(&mut self, file: usize, system: (u32, u32)) -> Vec<(Name, u32)> {
        let [old, layer, new] = [OLD, LAYER, NEW].map(|side| self.table(side, file));
        let id = |name: Name| {
            let id = layer.get(&name).map_or(NOBODY, id_of);
            (name, id)
        };
        let mut numbered: Vec<(Name, u32)> = layer.names().into_iter().map(id).collect();
        let mut used: BTreeSet<u32> = BTreeSet::new();
        for table in [old, layer] {
            used.extend(table.entries().map(id_of));
        }
        let is_added = |name: &Name| layer.get(name).is_none() && old.get(name).is_none();
        let added: Vec<Name> = new.names().into_iter().filter(is_added).collect();
        let wanted = |name: &Name| new.get(name).map_or(NOBODY, id_of);
        // First those that can have their own. That of root has all rights, whatever it is called.
        let mut ids: BTreeMap<Name, u32> = BTreeMap::new();
        for name in &added {
            if used.insert(wanted(name)) || wanted(name) == 0 {
                ids.insert(name.clone(), wanted(name));
            }
        }
        let mut of_system = (system.0..=system.1).rev();
        let mut of_people = FIRST_PERSON..=LAST_PERSON;
        for name in &added {
            if ids.contains_key(name) {
                continue;
            }
            let is_free = |id: &u32| !used.contains(id);
            let free = if wanted(name) < FIRST_PERSON {
                of_system.find(is_free)
            } else {
                of_people.find(is_free)
            };
            match free {
                Some(free) => {
                    used.insert(free);
                    ids.insert(name.clone(), free);
                }
                None => self.say(file, format!("no number is free for {}", shown(name))),
            }
        }
        let added = added
            .iter()
            .filter_map(|name| Some((name.clone(), *ids.get(name)?)));
        numbered.extend(added);
        numbered
    }

    /// What the layer has renamed: its number belongs to a name there that the old base does not have. All that has the
    /// number has become that one's, so that of the new base does as well.
    fn renamed(&self, file: usize) -> BTreeMap<Name, Name> {
        let [old, layer] = [OLD, LAYER].map(|side| self.table(side, file));
        let mut new: BTreeMap<u32, Name> = BTreeMap::new();
        for name in layer.names() {
            if let (Some(fields), None) = (layer.get(&name), old.get(&name)) {
                new.entry(id_of(fields)).or_insert(name);
            }
        }
        let mut renamed = BTreeMap::new();
        for name in old.names() {
            if let (Some(fields), None) = (old.get(&name), layer.get(&name))
                && let Some(now) = new.get(&id_of(fields))
            {
                renamed.insert(name, now.clone());
            }
        }
        renamed
    }

    fn say(&mut self, file: usize, text: String) {
        self.merged.conflicts.push((file, text));
    }

    /// One value of three; the layer's where both have changed it.
    fn pick<T: PartialEq + Clone>(
        &mut self,
        (file, what, name): (usize, &str, &[u8]),
        old: Option<&T>,
        layer: &T,
        new: &T,
    ) -> T {
        if layer == new || old == Some(layer) {
            return new.clone();
        }
        if old != Some(new) {
            self.say(file, format!("{what} of {}", shown(name)));
        }
        layer.clone()
    }

    fn groups(&mut self, numbered: &[(Name, u32)]) -> Vec<Fields> {
        let [old, layer, new] = [OLD, LAYER, NEW].map(|side| self.table(side, GROUP));
        let mut groups = Vec::new();
        for (name, id) in numbered {
            let (before, ours, theirs) = (old.get(name), layer.get(name), new.get(name));
            let Some(mut group) = ours.or(theirs).cloned() else {
                continue;
            };
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                let at = (GROUP, "password", name.as_slice());
                group[1] = self.pick(at, before.map(|b| &b[1]), &ours[1], &theirs[1]);
            }
            group[2] = id.to_string().into_bytes();
            group[3] = self.members(3, [before, ours, theirs]);
            groups.push(group);
        }
        groups
    }

    /// A list of names with what both sides have added, and without what either has removed. Users that the
    /// layer has deleted do not come back.
    fn members(&self, field: usize, [old, layer, new]: [Option<&Fields>; 3]) -> Vec<u8> {
        let [before, ours, theirs] = [old, layer, new]
            .map(|fields| fields.map_or_else(Vec::new, |fields| list(&fields[field])));
        if layer.is_some() && (new.is_none() || before == theirs) {
            return ours.join(&b',');
        }
        let first = if layer.is_none() || before == ours {
            &theirs
        } else {
            &ours
        };
        let [in_old, in_layer, in_new] = [&before, &ours, &theirs].map(|list| {
            let mut names: BTreeSet<Name> = BTreeSet::new();
            names.extend(list.iter().cloned());
            names
        });
        let mut seen = BTreeSet::new();
        let mut members: Vec<&[u8]> = Vec::new();
        for name in first.iter().chain(&theirs).chain(&ours) {
            let (ours, theirs) = (in_layer.contains(name), in_new.contains(name));
            // A list without a user who is not there says nothing of that one, who stays here.
            let is_gone = self.users.contains(name) && self.table(NEW, PASSWD).get(name).is_none();
            let is_in = if layer.is_some() && in_old.contains(name) {
                ours && (theirs || is_gone)
            } else {
                ours || theirs
            };
            if is_in && (ours || self.can_be_member(name)) && seen.insert(name.clone()) {
                members.push(name);
            }
        }
        members.join(&b',')
    }

    /// Whether it is a user that is there, or of no file.
    fn can_be_member(&self, name: &Name) -> bool {
        let is_unknown = |side: &usize| self.table(*side, PASSWD).get(name).is_none();
        self.users.contains(name) || [OLD, LAYER, NEW].iter().all(is_unknown)
    }

    fn users(&mut self, numbered: &[(Name, u32)], groups: &[Fields]) -> Vec<Fields> {
        let [old, layer, new] = [OLD, LAYER, NEW].map(|side| self.table(side, PASSWD));
        // The numbers that groups of the new base have now.
        let (by_name, taken) = numbers_of(groups);
        let renamed = self.renamed(GROUP);
        let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
        for group in self.table(NEW, GROUP).entries() {
            let name = renamed.get(&group[0]).unwrap_or(&group[0]);
            let now = by_name.get(shown(name).as_bytes()).copied();
            numbers.entry(id_of(group)).or_insert(now.unwrap_or(NOBODY));
        }
        let group_of = |id: &[u8]| match number(id) {
            Some(id) => match numbers.get(&id) {
                Some(now) => *now,
                None if taken.contains(&id) => NOBODY,
                None => id,
            },
            None => NOBODY,
        };
        let mut users = Vec::new();
        for (name, id) in numbered {
            let (before, ours, theirs) = (old.get(name), layer.get(name), new.get(name));
            let Some(mut user) = ours.or(theirs).cloned() else {
                continue;
            };
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                for (field, what) in [(1, "password"), (4, "gecos"), (5, "home"), (6, "shell")] {
                    let at = (PASSWD, what, name.as_slice());
                    let before = before.map(|b| &b[field]);
                    user[field] = self.pick(at, before, &ours[field], &theirs[field]);
                }
            }
            user[2] = id.to_string().into_bytes();
            if ours.is_none() {
                user[3] = group_of(&user[3]).to_string().into_bytes();
            }
            users.push(user);
        }
        users
    }

    /// The line of the layer for a name of its own. Where it has no line, and had none before, it is that of the new base.
    fn secrets_of(&self, name: &Name, names: usize, secrets: usize) -> Option<&'a Fields> {
        let has = |side| self.table(side, names).get(name).is_some();
        let line = |side| self.table(side, secrets).get(name);
        let had_none = has(OLD) && line(OLD).is_none();
        if has(LAYER) && (line(LAYER).is_some() || !had_none) {
            line(LAYER)
        } else {
            line(NEW)
        }
    }

    /// For each user whose password is there. A user without one is locked.
    fn shadow(&mut self, users: &[Fields]) -> Vec<Fields> {
        let [old, new] = [OLD, NEW].map(|side| self.table(side, SHADOW));
        let mut shadow = Vec::new();
        for user in users {
            let name = &user[0];
            let is_ours = self.table(LAYER, PASSWD).get(name).is_some();
            let (before, theirs) = (old.get(name), new.get(name));
            let mut line = match self.secrets_of(name, PASSWD, SHADOW) {
                Some(line) => line.clone(),
                None if user[1] == b"x" => locked(name),
                None => continue,
            };
            if let (true, Some(theirs)) = (is_ours, theirs) {
                let ours = line.clone();
                let at = (SHADOW, "password", name.as_slice());
                line[1] = self.pick(at, before.map(|b| &b[1]), &ours[1], &theirs[1]);
                // The day of the last change goes with the password. An image that is built anew has another day for the
                // same one.
                let is_day_theirs = if ours[1] == theirs[1] {
                    before.is_some_and(|b| b[2] == ours[2])
                } else {
                    line[1] == theirs[1]
                };
                // As chage(1) says that the password has to be changed.
                let is_due = ours[2] == b"0" && before.is_none_or(|b| b[2] != b"0");
                let of = if is_day_theirs && !is_due {
                    theirs
                } else {
                    &ours
                };
                line[2].clone_from(&of[2]);
                for field in 3..9 {
                    let at = (SHADOW, "expiry", name.as_slice());
                    let before = before.map(|b| &b[field]);
                    line[field] = self.pick(at, before, &ours[field], &theirs[field]);
                }
            }
            shadow.push(line);
        }
        shadow
    }

    fn gshadow(&mut self, groups: &[Fields]) -> Vec<Fields> {
        let [old, layer, new] = [OLD, LAYER, NEW].map(|side| self.table(side, GSHADOW));
        let is_emptied = !old.lines.is_empty();
        if layer.lines.is_empty() && (is_emptied || new.lines.is_empty()) {
            return Vec::new();
        }
        let mut gshadow = Vec::new();
        for group in groups {
            let name = &group[0];
            let is_ours = self.table(LAYER, GROUP).get(name).is_some();
            let (before, theirs) = (old.get(name), new.get(name));
            let mut line = match self.secrets_of(name, GROUP, GSHADOW) {
                Some(line) => line.clone(),
                None if group[1] == b"x" => {
                    vec![name.clone(), b"!".to_vec(), Vec::new(), group[3].clone()]
                }
                None => continue,
            };
            let ours = is_ours.then(|| line.clone());
            if let (Some(ours), Some(theirs)) = (&ours, theirs) {
                let at = (GSHADOW, "password", name.as_slice());
                line[1] = self.pick(at, before.map(|b| &b[1]), &ours[1], &theirs[1]);
            }
            if ours.is_some() || theirs.is_some() {
                for field in [2, 3] {
                    line[field] = self.members(field, [before, ours.as_ref(), theirs]);
                }
            }
            gshadow.push(line);
        }
        gshadow
    }

    /// The ranges of subuid or subgid. An account that has some in the layer keeps them: files on volumes carry those
    /// numbers too.
    fn ranges(&mut self, file: usize) -> Vec<Fields> {
        let [old, layer, new] = [OLD, LAYER, NEW].map(|side| self.table(side, file));
        let mut ranges = Vec::new();
        for name in layer.names() {
            ranges.extend_from_slice(layer.all(&name));
        }
        let mut taken: Vec<(u64, u64)> = ranges.iter().map(range).collect();
        for name in new.names() {
            let is_known = layer.get(&name).is_some() || old.get(&name).is_some();
            if is_known || !self.users.contains(&name) {
                continue;
            }
            let theirs = new.all(&name);
            let is_taken = |(start, end): (u64, u64)| {
                taken.iter().any(|other| start < other.1 && other.0 < end)
            };
            if theirs.iter().map(range).any(is_taken) {
                self.say(file, format!("the range of {} is in use", shown(&name)));
            } else {
                taken.extend(theirs.iter().map(range));
                ranges.extend_from_slice(theirs);
            }
        }
        ranges
    }

    /// Records which numbers the new base has for what is another one here.
    fn note_ids(&mut self, users: &[Fields], groups: &[Fields]) {
        for (file, entries) in [(PASSWD, users), (GROUP, groups)] {
            let new = self.table(NEW, file);
            let mut moved = BTreeMap::new();
            let (named, taken) = numbers_of(entries);
            let renamed = self.renamed(file);
            // Of two names with one number the first has its files.
            let mut seen = BTreeSet::new();
            for name in new.names() {
                let Some(theirs) = new.get(&name).map(id_of) else {
                    continue;
                };
                // Whatever that number is called, it has all rights.
                if theirs == 0 || !seen.insert(theirs) {
                    continue;
                }
                let now = renamed.get(&name).unwrap_or(&name);
                match named.get(shown(now).as_bytes()) {
                    Some(ours) if *ours != theirs => {
                        moved.insert(theirs, *ours);
                    }
                    None if taken.contains(&theirs) => {
                        moved.insert(theirs, NOBODY);
                    }
                    _ => {}
                }
            }
            let renamed = renamed
                .iter()
                .map(|(name, now)| (shown(name), shown(now)))
                .collect();
            let merged = &mut self.merged;
            if file == PASSWD {
                (merged.ids.users, merged.users) = (moved, named);
                merged.renamed_users = renamed;
            } else {
                (merged.ids.groups, merged.groups) = (moved, named);
                merged.renamed_groups = renamed;
            }
        }
    }
}

/// The number of each name, as it is shown, and all numbers.
fn numbers_of(entries: &[Fields]) -> (BTreeMap<Name, u32>, BTreeSet<u32>) {
    let (mut named, mut taken) = (BTreeMap::new(), BTreeSet::new());
    for fields in entries {
        named.insert(shown(&fields[0]).into_bytes(), id_of(fields));
        taken.insert(id_of(fields));
    }
    (named, taken)
}

/// The line of a user who has no password and gets none.
fn locked(name: &[u8]) -> Fields {
    let mut line = vec![name.to_vec(), b"!*".to_vec()];
    line.resize(FIELDS[SHADOW].1, Vec::new());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: SystemIds = SystemIds {
        users: (100, 999),
        groups: (100, 999),
    };

    fn files(contents: [&str; 4]) -> UserFiles {
        let mut files = UserFiles::default();
        for (file, content) in contents.into_iter().enumerate() {
            if content != "-" {
                files.0[file] = Some(content.as_bytes().to_vec());
            }
        }
        files
    }

    fn text(merged: &Merged, file: usize) -> String {
        let content = merged.files.0[file].clone().unwrap_or_default();
        String::from_utf8_lossy(&content).into_owned()
    }

    const BASE: [&str; 4] = [
        "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/sbin/nologin\nsvc:x:101:101::/:/sbin/nologin\n",
        "root:x:0:\ndaemon:x:1:\nsvc:x:101:\nwheel:x:10:root\n",
        "root:*:19000::::::\ndaemon:*:19000::::::\nsvc:!:19000::::::\n",
        "root:*::\ndaemon:*::\nsvc:!::\nwheel:*::root\n",
    ];

    #[test]
    fn what_is_not_changed_is_as_in_the_new_base() {
        let old = files(BASE);
        let new = BASE.map(|text| {
            text.replace("/bin/bash", "/bin/zsh")
                .replace("19000", "20000")
        });
        let new = files(new.each_ref().map(String::as_str));
        let merged = merge_users([&old, &old, &new], SYSTEM);
        assert_eq!(merged.files, new);
        assert_eq!((merged.ids, merged.conflicts), (Ids::default(), vec![]));
        assert_eq!(merge_users([&old, &new, &old], SYSTEM).files, new);
        assert_eq!(merge_users([&old, &new, &new], SYSTEM).files, new);
    }

    #[test]
    fn users_of_both_sides_come_together_with_the_numbers_of_the_host() {
        let layer = files([
            &(BASE[0].to_owned()
                + "anna:x:1000:1000:Anna:/home/anna:/bin/bash\nmon:x:102:102::/:/bin/false\n"),
            "root:x:0:\ndaemon:x:1:\nsvc:x:101:\nwheel:x:10:root,anna\nanna:x:1000:\nmon:x:102:\n",
            &BASE[2].replace("root:*:19000", "root:$y$secret:20100"),
            &BASE[3].replace("wheel:*::root", "wheel:*::root,anna"),
        ]);
        let new = files([
            &BASE[0].replace("svc:x:101:101", "svc:x:105:105").replace(
                "daemon:x:1",
                "new:x:102:102::/:/bin/false\nfree:x:110:100::/:/bin/false\ndaemon:x:1",
            ),
            &BASE[1].replace("svc:x:101:", "svc:x:105:\nnew:x:102:\nusers:x:100:new"),
            &(BASE[2].to_owned() + "new:!:20000::::::\nfree:!:20000::::::\n"),
            &(BASE[3].to_owned() + "new:!::\nusers:!::new\n"),
        ]);
        let merged = merge_users([&files(BASE), &layer, &new], SYSTEM);
        assert_eq!(faults(&merged.files), [""; 0]);
        assert_eq!(
            text(&merged, PASSWD),
            BASE[0].to_owned()
                + "anna:x:1000:1000:Anna:/home/anna:/bin/bash\nmon:x:102:102::/:/bin/false\n\
                   new:x:999:999::/:/bin/false\nfree:x:110:100::/:/bin/false\n"
        );
        assert_eq!(
            text(&merged, GROUP),
            "root:x:0:\ndaemon:x:1:\nsvc:x:101:\nwheel:x:10:root,anna\nanna:x:1000:\nmon:x:102:\n\
             new:x:999:\nusers:x:100:new\n"
        );
        let shadow = text(&merged, SHADOW);
        assert!(
            shadow.starts_with("root:$y$secret:20100::::::\n"),
            "{shadow}"
        );
        assert!(
            shadow.contains("anna:!*:::::::\n") && shadow.contains("new:!:20000"),
            "{shadow}"
        );
        let ids = [(102, 999), (105, 101)].into_iter().collect();
        assert_eq!(merged.ids.users, ids);
        assert_eq!(merged.ids.groups, ids);
        assert_eq!(merged.conflicts, []);
        assert_eq!(merged.users[&b"anna"[..]], 1000);
    }

    #[test]
    fn the_layer_wins_and_deleted_users_stay_deleted() {
        let layer = files([
            &BASE[0]
                .replace("daemon:x:1:1::/:/sbin/nologin\n", "")
                .replace("/bin/bash", "/bin/ksh"),
            BASE[1],
            &BASE[2]
                .replace("daemon:*:19000::::::\n", "")
                .replace("root:*:19000", "root:a:1"),
            BASE[3],
        ]);
        let new = files([
            &BASE[0]
                .replace("/bin/bash", "/bin/zsh")
                .replace("svc:x:101:101::/:/sbin/nologin\n", ""),
            &BASE[1].replace("wheel:x:10:root", "wheel:x:10:root,daemon"),
            &BASE[2]
                .replace("root:*:19000", "root:b:2")
                .replace("svc:!:19000::::::\n", ""),
            BASE[3],
        ]);
        let merged = merge_users([&files(BASE), &layer, &new], SYSTEM);
        assert_eq!(faults(&merged.files), [""; 0]);
        let passwd = text(&merged, PASSWD);
        assert!(
            passwd.contains("/bin/ksh") && !passwd.contains("daemon"),
            "{passwd}"
        );
        assert!(passwd.contains("svc:x:101:101"), "{passwd}");
        assert!(text(&merged, GROUP).contains("wheel:x:10:root\n"));
        let said: Vec<_> = merged
            .conflicts
            .iter()
            .map(|(_, said)| said.as_str())
            .collect();
        assert_eq!(said, ["shell of root", "password of root"]);
    }

    #[test]
    fn the_day_of_a_password_goes_with_it() {
        let passwd = "root:x:0:0:::\n";
        for (old, layer, new, wanted, is_conflict) in [
            // An image that is built anew.
            ("*:1", "a:5", "*:2", "a:5", false),
            ("*:1", "*:1", "*:2", "*:2", false),
            ("*:1", "*:1", "b:1", "b:1", false),
            ("*:1", "*:0", "*:2", "*:0", false),
            ("*:1", "a:5", "a:2", "a:5", false),
            ("*:1", "a:5", "b:2", "a:5", true),
            ("*:1", "*:5", "b:2", "b:2", false),
            ("*:1", "*:0", "b:2", "b:0", false),
        ] {
            let side = |secret: &str| files([passwd, "-", &format!("root:{secret}::::::\n"), "-"]);
            let merged = merge_users([&side(old), &side(layer), &side(new)], SYSTEM);
            let of = (text(&merged, SHADOW), !merged.conflicts.is_empty());
            let wanted = (format!("root:{wanted}::::::\n"), is_conflict);
            assert_eq!(of, wanted, "{old} {layer} {new}");
        }
    }

    #[test]
    fn lines_that_are_not_understood_stay() {
        let old = files(["a:x:1:1:::\n", "a:x:1:\n", "a:*:::::::\n", "-"]);
        let long = format!("long:x:5:5:{}:/:/bin/sh\n", "g".repeat(64 << 10));
        let layer = files([
            &format!("# note\na:x:1:1:::\na:x:9:9:::\nbroken:x\n{long}+@netgroup::::::\n+::::::\n"),
            "a:x:1:\n",
            "a:*:::::::\nghost:*:::::::\n",
            "-",
        ]);
        let new = files([
            "a:x:1:1:::\nb:x:2:2:::\n",
            "a:x:1:\nb:x:2:\n",
            "a:*:::::::\n",
            "-",
        ]);
        let merged = merge_users([&old, &layer, &new], SYSTEM);
        assert_eq!(
            text(&merged, PASSWD),
            format!("# note\na:x:1:1:::\nbroken:x\n{long}b:x:2:2:::\n+@netgroup::::::\n+::::::\n")
        );
        assert_eq!(
            text(&merged, SHADOW),
            "a:*:::::::\nlong:!*:::::::\nb:!*:::::::\n"
        );
        assert_eq!(merged.files.0[GSHADOW], None);
        assert_eq!(faults(&merged.files), [""; 0]);
    }

    #[test]
    fn ranges_do_not_overlap() {
        let side = |subuid: &str, passwd: &str| {
            let mut files = files([passwd, "-", "-", "-"]);
            files.0[4] = Some(subuid.into());
            files
        };
        let layer = side("anna:100000:65536\n", "anna:x:1000:1000:::\n");
        let both = "anna:x:1000:1000:::\nbert:x:1001:1001:::\ncora:x:1002:1002:::\n";
        let new = side(
            "bert:100000:65536\ncora:165536:65536\nghost:900000:1\n",
            both,
        );
        let merged = merge_users([&UserFiles::default(), &layer, &new], SYSTEM);
        assert_eq!(text(&merged, 4), "anna:100000:65536\ncora:165536:65536\n");
        assert_eq!(
            merged.conflicts[0],
            (4, "the range of bert is in use".to_owned())
        );
    }

    #[test]
    fn ranges_of_the_layer_stay() {
        let side = |subuid: &str| {
            let passwd = "a:x:1000:1000:::\nb:x:1001:1001:::\n";
            let mut files = files([passwd, "-", "-", "-"]);
            files.0[4] = Some(subuid.into());
            files
        };
        for (old, layer, new, wanted) in [
            // The image has moved one, with nobody in the way or with somebody.
            ("a:1:5\n", "a:1:5\n", "a:21:5\n", "a:1:5\n"),
            (
                "a:1:5\nb:6:5\n",
                "a:1:5\nb:21:5\n",
                "a:21:5\nb:6:5\n",
                "a:1:5\nb:21:5\n",
            ),
            // They are in each other's place.
            (
                "a:1:5\nb:6:5\n",
                "a:1:5\nb:3:5\n",
                "a:6:5\nb:1:5\n",
                "a:1:5\nb:3:5\n",
            ),
            // The image has no more of them.
            ("a:1:5\n", "a:1:5\n", "", "a:1:5\n"),
            // One that had none gets some.
            ("a:1:5\n", "a:1:5\n", "a:1:5\nb:6:5\n", "a:1:5\nb:6:5\n"),
            // They were taken away here.
            ("a:1:5\nb:6:5\n", "a:1:5\n", "a:1:5\nb:6:5\n", "a:1:5\n"),
        ] {
            let merged = merge_users([&side(old), &side(layer), &side(new)], SYSTEM);
            assert_eq!(text(&merged, 4), wanted, "{old:?} {layer:?} {new:?}");
            assert_eq!(merged.conflicts, [], "{new:?}");
        }
    }

    #[test]
    fn secrets_that_the_new_base_has_first_come() {
        let passwd = "root:x:0:0:::\nsvc:x:101:101:::\n";
        let group = "root:x:0:\nsvc:x:101:\n";
        let shadow = "root:*:19000::::::\nsvc:!:19000::::::\n";
        let gshadow = "root:*::\nsvc:!:root:\n";
        let plain = passwd.replace(":x:", ":hash:");
        let with = files([passwd, group, shadow, gshadow]);
        for without in [
            files([&plain, group, "", "-"]),
            files([&plain, group, "-", ""]),
            files([passwd, group, shadow, ""]),
        ] {
            let merged = merge_users([&without, &without, &with], SYSTEM);
            assert_eq!(merged.files, with);
            assert_eq!(merged.conflicts, []);
        }
        // One who came in the layer without a password gets none.
        let mine = passwd.to_owned() + "mine:x:1000:1000:::\n";
        let layer = files([&mine, group, shadow, gshadow]);
        let secret = shadow.to_owned() + "mine:$y$known:20000::::::\n";
        let new = files([&mine, group, &secret, gshadow]);
        let merged = merge_users([&with, &layer, &new], SYSTEM);
        assert!(text(&merged, SHADOW).contains("mine:!*:"), "{merged:?}");
    }

    #[test]
    fn secrets_of_groups_that_the_layer_has_emptied_stay_away() {
        let with = files(BASE);
        let without = files([BASE[0], BASE[1], BASE[2], ""]);
        for new in [&with, &without] {
            let merged = merge_users([&with, &without, new], SYSTEM);
            assert_eq!(text(&merged, GSHADOW), "");
        }
    }

    #[test]
    fn names_of_any_bytes_keep_their_numbers() {
        // Shown as text, both are alike.
        let names: [&[u8]; 2] = [b"a\xe4", b"a\xf6"];
        let side = |ids: [u32; 2]| {
            let lines = |rest: &str| -> Vec<u8> {
                let of = names.iter().zip(ids);
                let line = |(name, id): (&&[u8], u32)| {
                    [name, format!(":x:{id}:{rest}\n").as_bytes()].concat()
                };
                of.flat_map(line).collect()
            };
            let mut files = UserFiles::default();
            files.0[PASSWD] = Some(lines("5:::"));
            files.0[GROUP] = Some(lines(""));
            files
        };
        let merged = merge_users([&side([5, 6]), &side([5, 6]), &side([7, 8])], SYSTEM);
        assert_eq!(merged.ids.users, [(7, 5), (8, 6)].into());
        assert_eq!(merged.ids.groups, [(7, 5), (8, 6)].into());
        assert_eq!(merged.users.len(), 2);
    }

    #[test]
    fn numbers_of_the_system_are_read() {
        let ids = SystemIds::of(b"# SYS_UID_MAX 5\nSYS_UID_MIN\t\t201\nSYS_UID_MAX 5000\n");
        assert_eq!((ids.users, ids.groups), ((201, 999), (100, 999)));
    }

    /// A file of random lines, also of such as make no sense.
    fn random_files(random: &mut fastrand::Rng) -> UserFiles {
        let mut pick = |from: &[&str]| from[random.usize(..from.len())].to_owned();
        let mut files = UserFiles::default();
        let names = ["root", "a", "b", "c", "d", "+", "", "#x"];
        for file in 0..6 {
            if pick(&["", "", "", "", "none"]) == "none" {
                continue;
            }
            let mut content = String::new();
            while pick(&["", "", "", "", "", "end"]).is_empty() {
                let name = pick(&names);
                let id = pick(&["0", "1", "100", "999", "1000", "4294967295", "x"]);
                let secret = pick(&["x", "x", "*", ""]);
                let list = pick(&["", "a", "a,b", "b,c,root", ",,a"]);
                content += &match file {
                    PASSWD => format!("{name}:{secret}:{id}:{id}::/{list}:/bin/sh"),
                    GROUP => format!("{name}:{secret}:{id}:{list}"),
                    SHADOW => format!("{name}:{list}:{id}:0::::"),
                    GSHADOW => format!("{name}:!:{list}:{list}"),
                    _ => format!("{name}:{id}:{id}"),
                };
                content += &pick(&["\n", "\n", "\n", "\n", ":\n", "\n\n"]);
            }
            files.0[file] = Some(content.into_bytes());
        }
        files
    }

    #[test]
    fn any_three_sides_become_consistent_files() {
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..4_000 {
            let sides = [(); 3].map(|()| random_files(&mut random));
            let merged = merge_users(sides.each_ref(), SYSTEM);
            let found = faults(&merged.files);
            assert!(found.is_empty(), "{found:?}\n{sides:#?}\n{merged:#?}");
            // What came out of it, merged once more, is what it was.
            let again = merge_users([&sides[OLD], &merged.files, &sides[NEW]], SYSTEM);
            let shown = |files: &UserFiles| {
                let text = |content: &Option<Vec<u8>>| {
                    let content = content.as_deref().map(String::from_utf8_lossy);
                    content.map(std::borrow::Cow::into_owned)
                };
                files.0.each_ref().map(text)
            };
            let [old, layer, new] = sides.each_ref().map(shown);
            let (once, twice) = (shown(&merged.files), shown(&again.files));
            for file in 0..6 {
                // Comments come from the new base where the layer has nothing that the old one had not.
                let entries = |contents: &[Option<String>; 6]| {
                    let content = contents[file].clone().unwrap_or_default();
                    Table::parse(file, content.as_bytes()).by_name
                };
                let sides = format!("{old:?}\n{layer:?}\n{new:?}\n{once:?}\n{twice:?}");
                assert_eq!(entries(&once), entries(&twice), "{sides}");
            }
            let users = layer[PASSWD]
                .clone()
                .or(old[PASSWD].clone())
                .unwrap_or_default();
            for fields in Table::parse(PASSWD, users.as_bytes()).entries() {
                let name = &fields[0];
                let id = merged.users.get(name);
                assert_eq!(id, Some(&id_of(fields)), "{users}");
            }
        }
    }

    #[test]
    fn an_unchanged_side_gives_the_other() {
        let mut random = fastrand::Rng::with_seed(9);
        let merge = |sides: [&UserFiles; 3]| merge_users(sides, SYSTEM).files;
        let all = |files: &UserFiles| -> Vec<_> {
            let content = |file: usize| files.0[file].as_deref().unwrap_or_default();
            (0..6)
                .map(|file| super::entries(file, content(file)))
                .collect()
        };
        for _ in 0..2_000 {
            // As they are in an image: consistent, and all there.
            let [old, other] = [(); 2].map(|()| {
                let mut files = random_files(&mut random);
                for content in &mut files.0 {
                    content.get_or_insert_default();
                }
                merge([&files, &files, &files])
            });
            let seen = format!("{old:?}\n{other:?}");
            assert_eq!(all(&merge([&old, &other, &old])), all(&other), "{seen}");
            assert_eq!(all(&merge([&old, &other, &other])), all(&other), "{seen}");
            // But for numbers, and for users who are gone in the new base.
            let (wanted, found) = (all(&other), all(&merge([&old, &old, &other])));
            for (name, lines) in &wanted[SHADOW] {
                assert_eq!(found[SHADOW].get(name), Some(lines), "{seen}");
            }
            for (name, lines) in &wanted[PASSWD] {
                let found = &found[PASSWD][name][0];
                assert_eq!(
                    (&found[1], &found[4..]),
                    (&lines[0][1], &lines[0][4..]),
                    "{seen}"
                );
            }
        }
    }

    #[test]
    fn what_is_renamed_in_the_layer_keeps_what_is_its_own() {
        let files = |passwd: &str, group: &str| {
            let mut files = UserFiles::default();
            files.0[PASSWD] = Some(passwd.as_bytes().to_vec());
            files.0[GROUP] = Some(group.as_bytes().to_vec());
            files
        };
        let root = "root:x:0:0:::\n";
        let of = |name: &str| {
            let passwd = format!("{root}{name}:x:1000:1000:::\n");
            files(&passwd, &format!("root:x:0:\n{name}:x:1000:\n"))
        };
        let merged = merge_users([&of("pi"), &of("anna"), &of("pi")], SYSTEM);
        assert_eq!(merged.ids, Ids::default());
        let wanted = [("pi".to_owned(), "anna".to_owned())];
        assert_eq!(merged.renamed_users, wanted.clone().into());
        assert_eq!(merged.renamed_groups, wanted.into());
        // The new base has another number for it.
        let moved = files(
            &format!("{root}pi:x:1001:1001:::\n"),
            "root:x:0:\npi:x:1001:\n",
        );
        let ids = merge_users([&of("pi"), &of("anna"), &moved], SYSTEM).ids;
        assert_eq!(
            (ids.users, ids.groups),
            ([(1001, 1000)].into(), [(1001, 1000)].into())
        );
        // Of root all belongs to whoever has its number.
        let passwd = |name: &str| files(&format!("{name}:x:0:0:::\n"), "root:x:0:\n");
        for (old, layer) in [("root", "admin"), ("other", "admin")] {
            let merged = merge_users([&passwd(old), &passwd(layer), &passwd("root")], SYSTEM);
            assert_eq!(merged.ids, Ids::default(), "{old} {layer}");
        }
    }

    #[test]
    fn a_user_who_stays_is_in_the_groups_as_before() {
        let files = |users: &str, members: &str| {
            let mut files = UserFiles::default();
            files.0[PASSWD] = Some(format!("root:x:0:0:::\n{users}").into_bytes());
            files.0[GROUP] = Some(format!("root:x:0:\nsudo:x:27:{members}\n").into_bytes());
            files.0[GSHADOW] = Some(format!("root:*::\nsudo:*::{members}\n").into_bytes());
            files
        };
        let pi = "pi:x:1000:0:::\n";
        for (layer, new, wanted) in [
            (files(pi, "pi"), files("", ""), "sudo:x:27:pi\n"),
            (files(pi, ""), files("", ""), "sudo:x:27:\n"),
            // The new base has the user, and not in that group.
            (files(pi, "pi"), files(pi, ""), "sudo:x:27:\n"),
            (files("", ""), files(pi, "pi"), "sudo:x:27:\n"),
        ] {
            let merged = merge_users([&files(pi, "pi"), &layer, &new], SYSTEM);
            assert!(text(&merged, GROUP).contains(wanted), "{merged:?}");
            assert_eq!(faults(&merged.files), Vec::<String>::new());
        }
    }

    #[test]
    fn a_group_of_several_lines_keeps_all_its_members() {
        let files = |groups: &str| {
            let users = "root:x:0:0:::\nanna:x:1000:0:::\n";
            files([users, groups, "-", "wheel:*::root\nwheel:*::anna\n"])
        };
        let split = "root:x:0:\nwheel:x:10:root\nwheel:x:10:anna,root\n";
        let base = "root:x:0:\nwheel:x:10:root\n";
        for (old, layer, new) in [
            (base, split, base),
            (split, split, split),
            (base, split, "root:x:0:\n"),
        ] {
            let merged = merge_users([&files(old), &files(layer), &files(new)], SYSTEM);
            assert_eq!(text(&merged, GROUP), "root:x:0:\nwheel:x:10:root,anna\n");
            assert_eq!(text(&merged, GSHADOW), "wheel:*::root,anna\nroot:!::\n");
            assert_eq!(faults(&merged.files), Vec::<String>::new());
        }
        // Another number is another group, to which the first line says nothing.
        let other = "root:x:0:\nwheel:x:10:root\nwheel:x:20:anna\n";
        let merged = merge_users([&files(base), &files(other), &files(base)], SYSTEM);
        assert!(text(&merged, GROUP).contains("wheel:x:10:root\n"));
    }

    #[test]
    fn names_have_other_numbers_in_another_root() {
        let files = |passwd: &str, group: &str| {
            let mut files = UserFiles::default();
            files.0[PASSWD] = Some(passwd.as_bytes().to_vec());
            files.0[GROUP] = Some(group.as_bytes().to_vec());
            files
        };
        let from = files(
            "admin:x:0:0:::\nroot:x:0:0:::\nweb:x:101:102:::\nweb2:x:101:102:::\ngone:x:103:103:::\n",
            "root:x:0:\nweb:x:102:\n",
        );
        // Another name of root has a number of its own there.
        let to = files(
            "root:x:0:0:::\nadmin:x:999:0:::\nweb:x:201:202:::\n",
            "web:x:202:\n",
        );
        let moved = |is_group, old, new| Moved {
            is_group,
            name: "web".to_owned(),
            old,
            new,
        };
        let admin = Moved {
            name: "admin".to_owned(),
            ..moved(false, 0, 999)
        };
        let wanted = [admin, moved(false, 101, 201), moved(true, 102, 202)];
        assert_eq!(super::moved(&from, &to), wanted);
        assert_eq!(super::moved(&from, &from), []);
        let ids = Ids::between(&from, &to);
        assert_eq!(ids.users, [(101, 201), (103, 0)].into());
        assert_eq!(ids.groups, [(102, 202)].into());
    }

    #[test]
    fn another_name_of_root_has_its_number() {
        let root = "root:x:0:0:::\n";
        let layer = files([root, "root:x:0:\n", "", "-"]);
        let new = files([&format!("toor:x:0:0:::\n{root}"), "root:x:0:\n", "", "-"]);
        let merged = merge_users([&layer, &layer, &new], SYSTEM);
        assert_eq!(text(&merged, PASSWD), format!("toor:x:0:0:::\n{root}"));
        assert_eq!(merged.ids, Ids::default());
    }
}
