//! What becomes of one path. No input or output: what is there on each side comes in, the result goes out.

use std::ffi::{OsStr, OsString};

use serde::{Deserialize, Serialize};

use crate::tree::{Kind, Xattrs};

/// Names where a side has them for its numbers, else the numbers behind `#`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub user: String,
    pub group: String,
}

/// A path on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub kind: Kind,
    /// Equal numbers are equal content: of a file, of a link, or which device it is. Directories have none.
    pub content: u8,
    pub mode: u32,
    pub owner: Owner,
    pub xattrs: Xattrs,
}

/// What is merged by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    Type,
    Content,
    Mode,
    Owner,
    Xattr,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Content => "content",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Xattr => "attributes",
        }
    }
}

/// The side that a part of the result is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Layer,
    New,
}

/// Why a path is a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clash {
    /// Both have changed it, and not to the same.
    Both,
    /// The layer has changed it, in the new base it is gone.
    Gone,
    /// The layer has deleted it, the new base has changed it.
    Deleted,
    /// Both have added it, and not the same.
    Added,
    /// It is of another type, such as a directory for a file.
    Type,
}

/// What a person is told of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Nothing: it is as in the new base.
    No,
    /// These parts are as the layer has changed them.
    Kept(Vec<Part>),
    /// These parts are not as the new base has them, though it has changed them.
    Conflict(Clash, Vec<Part>),
}

/// What will be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What the new base has, if it has anything.
    New,
    /// Nothing. A directory stays if something is in it that is new in the new base.
    Absent,
    /// A file of these parts.
    Made {
        content: Whose,
        mode: u32,
        owner: Owner,
        xattrs: Xattrs,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub outcome: Outcome,
    pub listed: Listed,
}

impl Decision {
    fn new(outcome: Outcome, listed: Listed) -> Self {
        Self { outcome, listed }
    }

    /// As in the new base, without a word.
    fn silent() -> Self {
        Self::new(Outcome::New, Listed::No)
    }

    fn layers(layer: &State, listed: Listed) -> Self {
        let outcome = Outcome::Made {
            content: Whose::Layer,
            mode: layer.mode,
            owner: layer.owner.clone(),
            xattrs: layer.xattrs.clone(),
        };
        Self::new(outcome, listed)
    }
}

/// A label says what policy a file is under (selinux(8)). Where the old base has none, the layer's is of the policy that
/// has run there, and no person's.
const LABEL: &str = "security.selinux";

/// Whether two sides are the same, but for a label that only one of them has.
fn is_same(a: &State, b: &State) -> bool {
    let is_labelled = |state: &State| state.xattrs.contains_key(OsStr::new(LABEL));
    if is_labelled(a) == is_labelled(b) {
        return a == b;
    }
    let without = |state: &State| {
        let mut state = state.clone();
        state.xattrs.remove(OsStr::new(LABEL));
        state
    };
    without(a) == without(b)
}

/// Decides on one path from what it is in the old base, the layer and the new base. What is below a directory
/// is decided by itself.
pub fn decide(old: Option<&State>, layer: Option<&State>, new: Option<&State>) -> Decision {
    use Clash::{Added, Deleted, Gone, Type};
    let is_dir = |state: &State| state.kind == Kind::Dir;
    let conflict = |clash| Listed::Conflict(clash, vec![]);
    let of_type = || Listed::Conflict(Type, vec![Part::Type]);
    match (old, layer, new) {
        (None, None, _) | (Some(_), None, None) => Decision::silent(),
        // What the image needs as a directory comes, with all that is in it.
        (Some(old), None, Some(new)) if is_dir(new) && !is_dir(old) => {
            Decision::new(Outcome::New, of_type())
        }
        (Some(old), None, Some(new)) => {
            let listed = if is_same(old, new) {
                Listed::Kept(vec![])
            } else {
                conflict(Deleted)
            };
            Decision::new(Outcome::Absent, listed)
        }
        (None, Some(layer), None) => Decision::layers(layer, Listed::Kept(vec![])),
        (Some(old), Some(layer), None) if is_same(old, layer) => Decision::silent(),
        (Some(_), Some(layer), None) => Decision::layers(layer, conflict(Gone)),
        (None, Some(layer), Some(new)) if layer.kind == new.kind => parts(None, layer, new, Added),
        (None, Some(layer), Some(_)) => Decision::layers(layer, of_type()),
        (Some(old), Some(layer), Some(new)) => of_all(old, layer, new),
    }
}

fn of_all(old: &State, layer: &State, new: &State) -> Decision {
    let conflict = || Listed::Conflict(Clash::Type, vec![Part::Type]);
    if layer.kind == new.kind {
        return parts(Some(old), layer, new, Clash::Both);
    }
    if is_same(layer, old) {
        return Decision::silent();
    }
    let is_dir = |state: &State| state.kind == Kind::Dir;
    if is_same(new, old) {
        return Decision::layers(layer, Listed::Kept(vec![Part::Type]));
    }
    // What became a directory, or is none any more, has to be so for the rest of the image.
    let is_new = if layer.kind == old.kind {
        is_dir(layer) || is_dir(new)
    } else {
        is_dir(new) && !is_dir(old)
    };
    if is_new {
        Decision::new(Outcome::New, conflict())
    } else {
        Decision::layers(layer, conflict())
    }
}

/// Of what is of the same type in the layer and the new base.
fn parts(old: Option<&State>, layer: &State, new: &State, clash: Clash) -> Decision {
    let mut merge = Parts::default();
    // Content of another type is another content.
    let old_content = old
        .filter(|old| old.kind == layer.kind)
        .map(|old| &old.content);
    let content = merge.pick(Part::Content, old_content, &layer.content, &new.content);
    let is_edited = content == Whose::Layer && layer.kind == Kind::File;
    let mut mode = merge.pick(Part::Mode, old.map(|old| &old.mode), &layer.mode, &new.mode);
    // What a person has written gets no more rights than that person gave it.
    let gains = new.mode & !layer.mode & 0o6000 != 0;
    if is_edited && mode == Whose::New && gains {
        mode = Whose::Layer;
        merge.clash(Part::Mode);
    }
    let mut owner = merge.pick(
        Part::Owner,
        old.map(|old| &old.owner),
        &layer.owner,
        &new.owner,
    );
    let of = |whose| if whose == Whose::Layer { layer } else { new };
    // Nor those of somebody else.
    let is_set = of(mode).mode & 0o6000 != 0 && layer.owner != new.owner;
    if is_edited && owner == Whose::New && is_set {
        owner = Whose::Layer;
        merge.clash(Part::Owner);
    }
    let xattrs = merge.xattrs(old, layer, new, is_edited);
    let (mode, owner) = (of(mode).mode, of(owner).owner.clone());
    let is_new =
        content == Whose::New && (mode, &owner, &xattrs) == (new.mode, &new.owner, &new.xattrs);
    let outcome = if is_new {
        Outcome::New
    } else {
        Outcome::Made {
            content,
            mode,
            owner,
            xattrs,
        }
    };
    Decision::new(outcome, merge.listed(clash))
}

/// The parts of a path that are not simply as in the new base.
#[derive(Default)]
struct Parts {
    kept: Vec<Part>,
    clashes: Vec<Part>,
}

impl Parts {
    fn pick<T: PartialEq>(&mut self, part: Part, old: Option<&T>, layer: &T, new: &T) -> Whose {
        let is_changed = |side| old != Some(side);
        if layer == new || !is_changed(layer) {
            return Whose::New;
        }
        if is_changed(new) {
            self.clash(part);
        } else if !self.kept.contains(&part) {
            self.kept.push(part);
        }
        Whose::Layer
    }

    fn clash(&mut self, part: Part) {
        if !self.clashes.contains(&part) {
            self.clashes.push(part);
        }
    }

    /// Each attribute by itself.
    fn xattrs(
        &mut self,
        old: Option<&State>,
        layer: &State,
        new: &State,
        is_edited: bool,
    ) -> Xattrs {
        let mut merged = Xattrs::new();
        let is_added = |name: &&OsString| !layer.xattrs.contains_key(*name);
        let added = new.xattrs.keys().filter(is_added);
        for name in layer.xattrs.keys().chain(added) {
            let value = |state: &State| state.xattrs.get(name).cloned();
            let before = old.map(value);
            let (ours, theirs) = (value(layer), value(new));
            let is_of_policy = name.as_os_str() == LABEL && !matches!(before, Some(Some(_)));
            if let Some(label) = theirs.as_ref().filter(|_| is_of_policy) {
                merged.insert(name.clone(), label.clone());
                continue;
            }
            let mut whose = self.pick(Part::Xattr, before.as_ref(), &ours, &theirs);
            let is_right = name.as_os_str() == "security.capability";
            if is_edited && is_right && whose == Whose::New && theirs.is_some() && ours != theirs {
                self.clash(Part::Xattr);
                whose = Whose::Layer;
            }
            let value = if whose == Whose::Layer { ours } else { theirs };
            merged.extend(value.map(|value| (name.clone(), value)));
        }
        merged
    }

    fn listed(self, clash: Clash) -> Listed {
        if !self.clashes.is_empty() {
            return Listed::Conflict(clash, self.clashes);
        }
        if self.kept.is_empty() {
            return Listed::No;
        }
        Listed::Kept(self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `-` is nothing, `f1` a file, `l1` a link, `d` a directory; `:MODE`, `@OWNER` and `+ATTRIBUTE=VALUE` can
    /// follow.
    fn state(text: &str) -> Option<State> {
        if text == "-" {
            return None;
        }
        let (text, xattr) = text.split_once('+').unwrap_or((text, ""));
        let (text, owner) = text.split_once('@').unwrap_or((text, "root"));
        let (text, mode) = text.split_once(':').unwrap_or((text, "644"));
        let kind = match text.as_bytes()[0] {
            b'f' => Kind::File,
            b'l' => Kind::Link,
            _ => Kind::Dir,
        };
        let xattr = xattr.split_once('=');
        Some(State {
            kind,
            content: text[1..].parse().unwrap_or(0),
            mode: u32::from_str_radix(mode, 8).unwrap(),
            owner: Owner {
                user: owner.to_owned(),
                group: owner.to_owned(),
            },
            xattrs: xattr
                .map(|(name, value)| (name.into(), value.into()))
                .into_iter()
                .collect(),
        })
    }

    /// What is there in the end, and what is listed.
    fn result(old: &str, layer: &str, new: &str) -> (Option<State>, String) {
        let (old, layer, new) = (state(old), state(layer), state(new));
        let decision = decide(old.as_ref(), layer.as_ref(), new.as_ref());
        let result = match decision.outcome {
            Outcome::New => new,
            Outcome::Absent => None,
            Outcome::Made {
                content,
                mode,
                owner,
                xattrs,
            } => {
                let from = if content == Whose::Layer { layer } else { new }.unwrap();
                Some(State {
                    mode,
                    owner,
                    xattrs,
                    ..from
                })
            }
        };
        let listed = match decision.listed {
            Listed::No => "no".to_owned(),
            Listed::Kept(_) => "kept".to_owned(),
            Listed::Conflict(clash, parts) => format!("{clash:?} {parts:?}"),
        };
        (result, listed)
    }

    #[test]
    fn the_table_of_the_merge() {
        for (old, layer, new, wanted, listed) in [
            ("f1", "f1", "f1", "f1", "no"),
            ("f1", "f1", "f2", "f2", "no"),
            ("f1", "f1", "-", "-", "no"),
            ("f1", "f1", "d", "d", "no"),
            ("f1", "f2", "f1", "f2", "kept"),
            ("f1", "f2", "f2", "f2", "no"),
            ("f1", "f2", "f3", "f2", "Both [Content]"),
            ("f1", "f2", "-", "f2", "Gone []"),
            ("f1", "-", "f1", "-", "kept"),
            ("f1", "-", "f2", "-", "Deleted []"),
            ("f1", "-", "-", "-", "no"),
            ("-", "f1", "-", "f1", "kept"),
            ("-", "f1", "f1", "f1", "no"),
            ("-", "f1", "f2", "f1", "Added [Content]"),
            ("-", "-", "f1", "f1", "no"),
            ("-", "-", "-", "-", "no"),
            // Types.
            ("f1", "f2", "d", "d", "Type [Type]"),
            ("d", "d:700", "f1", "f1", "Type [Type]"),
            ("f1", "l1", "f1", "l1", "kept"),
            ("f1", "l1", "f2", "l1", "Type [Type]"),
            ("f1", "l1", "d", "d", "Type [Type]"),
            ("f1", "d", "f1", "d", "kept"),
            ("f1", "d", "f2", "d", "Type [Type]"),
            ("d", "f1", "d", "f1", "kept"),
            ("d", "l1", "d", "l1", "kept"),
            ("f1", "f2", "l1", "f2", "Type [Type]"),
            ("f1", "l1", "l1", "l1", "no"),
            ("f1", "l1", "l2", "l1", "Both [Content]"),
            ("f1", "-", "d", "d", "Type [Type]"),
            ("-", "f1", "d", "f1", "Type [Type]"),
            ("-", "d", "f1", "d", "Type [Type]"),
            // Modes.
            ("f1", "f1:600", "f1", "f1:600", "kept"),
            ("f1", "f1", "f1:600", "f1:600", "no"),
            ("f1", "f1:600", "f1:600", "f1:600", "no"),
            ("f1", "f1:600", "f1:640", "f1:600", "Both [Mode]"),
            ("f1", "f2", "f1:600", "f2:600", "kept"),
            ("f1", "f1:600", "f2", "f2:600", "kept"),
            ("f1:4755", "f1:755", "f2:4755", "f2:755", "kept"),
            ("f1:755", "f2:755", "f1:4755", "f2:755", "Both [Mode]"),
            ("f1:755", "f1:755", "f2:4755", "f2:4755", "no"),
            // And it runs as nobody else.
            (
                "f1:4755@a",
                "f2:4755@a",
                "f1:4755@root",
                "f2:4755@a",
                "Both [Owner]",
            ),
            ("f1:755@a", "f2:755@a", "f1:755@root", "f2:755@root", "kept"),
            (
                "f1:4755@a",
                "f1:4755@a",
                "f2:4755@root",
                "f2:4755@root",
                "no",
            ),
            ("d:755", "d:700", "d:755", "d:700", "kept"),
            // Owners.
            ("f1", "f1@a", "f1", "f1@a", "kept"),
            ("f1", "f1", "f1@b", "f1@b", "no"),
            ("f1", "f1@a", "f2", "f2@a", "kept"),
            ("f1", "f1@a", "f1@b", "f1@a", "Both [Owner]"),
            // Attributes.
            ("f1", "f1+user.a=1", "f2", "f2+user.a=1", "kept"),
            ("f1+user.a=1", "f1", "f2+user.a=1", "f2", "kept"),
            ("f1", "f1", "f1+user.a=1", "f1+user.a=1", "no"),
            (
                "f1",
                "f1+user.a=1",
                "f1+user.a=2",
                "f1+user.a=1",
                "Both [Xattr]",
            ),
            (
                "f1",
                "f1",
                "f1+security.capability=1",
                "f1+security.capability=1",
                "no",
            ),
            // The ACLs that a directory gives to what is made in it.
            (
                "d",
                "d+system.posix_acl_default=1",
                "d:700",
                "d:700+system.posix_acl_default=1",
                "kept",
            ),
            ("f1", "f2", "f1+security.capability=1", "f2", "Both [Xattr]"),
        ] {
            let row = format!("{old} {layer} {new}");
            let (got, said) = result(old, layer, new);
            assert_eq!(got, state(wanted), "{row}");
            assert_eq!(said, listed, "{row}");
        }
    }

    #[test]
    fn a_label_is_the_images_where_no_person_has_set_another() {
        let labelled = |text: &str| text.replace('~', "+security.selinux=");
        for (old, layer, new, wanted, listed) in [
            ("f1~a", "f1~a", "f2~b", "f2~b", "no"),
            ("f1~a", "f1~b", "f2~a", "f2~b", "kept"),
            ("f1~a", "f1~b", "f1~c", "f1~b", "Both [Xattr]"),
            // The policy of the host has labelled it.
            ("f1", "f1~a", "f1~b", "f1~b", "no"),
            ("f1", "f2~a", "f1~b", "f2~b", "kept"),
            ("f1", "f1~a", "f1", "f1~a", "kept"),
            ("f1", "f1~a", "-", "-", "no"),
            ("f1", "f2~a", "-", "f2~a", "Gone []"),
            ("f1", "f1~a", "d", "d", "no"),
            ("f1", "-", "f1~a", "-", "kept"),
            ("f1", "-", "f2~a", "-", "Deleted []"),
            ("-", "f1~a", "f1~b", "f1~b", "no"),
            ("-", "f1~a", "-", "f1~a", "kept"),
        ] {
            let row = format!("{old} {layer} {new}");
            let [old, layer, new] = [old, layer, new].map(labelled);
            let (got, said) = result(&old, &layer, &new);
            assert_eq!(got, state(&labelled(wanted)), "{row}");
            assert_eq!(said, listed, "{row}");
        }
    }

    #[test]
    fn an_unchanged_side_gives_the_other_and_twice_is_once() {
        let mut states = vec![None];
        for text in [
            "f1",
            "f2",
            "f1:600",
            "f1@a",
            "f1+user.a=1",
            "l1",
            "l2",
            "d",
            "d:700",
        ] {
            states.push(state(text));
        }
        let merge = |old: &Option<State>, layer: &Option<State>, new: &Option<State>| {
            let decision = decide(old.as_ref(), layer.as_ref(), new.as_ref());
            match decision.outcome {
                Outcome::New => new.clone(),
                Outcome::Absent => None,
                Outcome::Made {
                    content,
                    mode,
                    owner,
                    xattrs,
                } => {
                    let from = if content == Whose::Layer { layer } else { new };
                    from.clone().map(|from| State {
                        mode,
                        owner,
                        xattrs,
                        ..from
                    })
                }
            }
        };
        for a in &states {
            for b in &states {
                assert_eq!(merge(a, a, b), *b);
                assert_eq!(merge(a, b, a), *b);
                assert_eq!(merge(a, b, b), *b);
                for c in &states {
                    let once = merge(a, b, c);
                    assert_eq!(merge(a, &once, c), once, "{a:?} {b:?} {c:?}");
                }
            }
        }
    }
}
