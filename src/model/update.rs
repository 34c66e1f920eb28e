//! Whether an image is to become the next layer of a host: pure.

use std::fmt;

use anyhow::{Result, bail, ensure};

use super::layout::{Failure, Group, Role, Volume, tag};
use super::name::LvName;
use super::trial::OnTrial;

/// What an update begins with.
pub struct Facts<'a> {
    pub group: &'a Group,
    /// The layer that runs.
    pub booted: &'a LvName,
    /// What is on trial, also what has used up its tries.
    pub trial: Option<&'a OnTrial>,
    /// The layer or base that boots by default.
    pub default: Option<&'a str>,
    /// The SHA-256 of the image; a directory has none.
    pub image: Option<&'a str>,
}

/// What the person has said.
#[derive(Clone, Copy, Default)]
pub struct Wishes {
    /// Take an image that has failed here.
    pub retry: bool,
    /// Drop another update that waits.
    pub replace: bool,
}

/// What this host knows of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No base was made of it.
    New,
    /// The layer that runs was made of it.
    Runs(LvName),
    /// A layer of it waits for a restart.
    Waits(LvName),
    /// There is a base, of which no layer waits or has failed.
    Made(LvName),
    /// There is a base, which a rollback has left.
    Held(LvName),
    /// A layer of it, of this base, did not come up.
    Failed(LvName, LvName, Failure),
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing, since it is so already.
    Nothing(Standing),
    /// A layer of a base that is made, or of this one.
    Go(Option<LvName>),
}

impl Facts<'_> {
    pub fn standing(&self) -> Standing {
        let Some(image) = self.image else {
            return Standing::New;
        };
        let tag = format!("{}{image}", tag::IMAGE);
        let bases = self.group.bases();
        let of_image = || bases.iter().filter(|base| base.volume.has_tag(&tag));
        let runs = of_image().find(|base| base.layers.iter().any(|(name, _)| name == self.booted));
        if let Some(base) = runs {
            return Standing::Runs(base.name.clone());
        }
        for base in of_image() {
            let waits = |(name, _): &&(LvName, &Volume)| self.waiting().is_some_and(|w| w == *name);
            if let Some((layer, _)) = base.layers.iter().find(waits) {
                return Standing::Waits(layer.clone());
            }
        }
        if let Some(base) = of_image().find(|base| base.volume.is_held()) {
            return Standing::Held(base.name.clone());
        }
        for base in of_image() {
            let mut layers = base.layers.iter();
            let failed = layers.find_map(|(name, volume)| Some((name, volume.failure()?)));
            if let Some((layer, failure)) = failed {
                return Standing::Failed(base.name.clone(), layer.clone(), failure);
            }
        }
        of_image()
            .next()
            .map_or(Standing::New, |base| Standing::Made(base.name.clone()))
    }

    /// The layer of an update that waits for the restart: one that never came up, is on trial or the default, and
    /// is not the one that runs.
    pub fn waiting(&self) -> Option<LvName> {
        let trial = self.trial.filter(|trial| trial.kernel.is_none());
        let trial = trial.filter(|trial| trial.tried < trial.tries);
        let chosen = [trial.map(|trial| trial.name.as_str()), self.default];
        let mut names = chosen.into_iter().flatten();
        names.find_map(|name| {
            let name: LvName = name.parse().ok()?;
            let volume = self.group.volume(name.as_str())?;
            let is_new = volume.role == Role::Layer && !volume.is_good();
            (is_new && name != *self.booted).then_some(name)
        })
    }

    /// Refuses what a person has to decide first.
    pub fn decide(&self, wishes: Wishes) -> Result<Decision> {
        // A new kernel of the layer that runs makes room.
        let is_tried = self
            .trial
            .is_some_and(|trial| trial.kernel.is_none() && trial.name == self.booted.as_str());
        ensure!(
            !is_tried,
            "{0} is on trial itself; `imgbased-helper boot bless` says that it has come up",
            self.booted
        );
        let standing = self.standing();
        if let Standing::Runs(_) | Standing::Waits(_) = standing {
            return Ok(Decision::Nothing(standing));
        }
        if let (Some(waiting), false) = (self.waiting(), wishes.replace) {
            bail!(
                "{waiting}, of another update, waits for a restart; restart first, or use --replace to drop it"
            );
        }
        match standing {
            Standing::Failed(_, layer, failure) if !wishes.retry => bail!(
                "this image was tried as {layer} before and {failure}; --retry takes it again"
            ),
            Standing::Held(base) if !wishes.retry => bail!(
                "a rollback has left {base}, which was made of this image; --retry takes it again"
            ),
            Standing::Failed(base, ..) | Standing::Held(base) | Standing::Made(base) => {
                Ok(Decision::Go(Some(base)))
            }
            _ => Ok(Decision::Go(None)),
        }
    }
}

/// For people, after the name of the image.
impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => write!(f, "is new to this host"),
            Self::Runs(base) => write!(f, "is what runs, {base}"),
            Self::Waits(layer) => write!(f, "waits for a restart already, as {layer}"),
            Self::Made(base) => write!(f, "is there already, as {base}"),
            Self::Held(base) => write!(f, "is held, as a rollback has left {base}"),
            Self::Failed(_, layer, failure) => {
                write!(f, "was tried as {layer} before and {failure}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that runs Base-0.1.
    fn group() -> Group {
        let volume = Volume::tagged;
        Group::with(vec![
            volume("Base-0", &[tag::BASE, "imgbased:image=aa"]),
            volume("Base-0.1", &[tag::LAYER, tag::GOOD]),
            volume("Base-1", &[tag::BASE, "imgbased:image=bb"]),
            volume(
                "Base-1.1",
                &[tag::LAYER, "imgbased:failed=3:2026-01-02T03:04:05Z"],
            ),
            volume("Base-2", &[tag::BASE, "imgbased:image=cc"]),
            volume("Base-2.1", &[tag::LAYER]),
            volume("Base-3", &[tag::BASE, "imgbased:image=dd"]),
            volume("Base-3.1", &[tag::LAYER, tag::GOOD]),
            volume("Base-4", &[tag::BASE, tag::HOLD, "imgbased:image=ff"]),
            volume("Base-4.1", &[tag::LAYER, tag::GOOD]),
        ])
    }

    fn trial(name: &str, tried: u32) -> OnTrial {
        OnTrial {
            name: name.to_owned(),
            kernel: None,
            tries: 3,
            tried,
        }
    }

    #[test]
    fn what_is_there_already_is_not_made_again() {
        let group = group();
        let booted = "Base-0.1".parse().unwrap();
        for (image, waiting, expected) in [
            (Some("aa"), None, "is what runs, Base-0"),
            (
                Some("bb"),
                None,
                "was tried as Base-1.1 before and failed 3 times, 2026-01-02T03:04:05Z",
            ),
            (Some("cc"), None, "is there already, as Base-2"),
            (
                Some("cc"),
                Some("Base-2.1"),
                "waits for a restart already, as Base-2.1",
            ),
            (Some("dd"), None, "is there already, as Base-3"),
            (Some("ee"), None, "is new to this host"),
            (Some("ff"), None, "is held, as a rollback has left Base-4"),
            (None, Some("Base-2.1"), "is new to this host"),
        ] {
            let trial = waiting.map(|name| trial(name, 0));
            let facts = Facts {
                group: &group,
                booted: &booted,
                trial: trial.as_ref(),
                default: Some("Base-0.1"),
                image,
            };
            assert_eq!(facts.standing().to_string(), expected, "{image:?}");
        }
    }

    #[test]
    fn a_person_decides_what_is_dropped_and_what_is_tried_again() {
        let group = group();
        let booted = "Base-0.1".parse().unwrap();
        let go = |base: Option<&str>| Ok(Decision::Go(base.map(|base| base.parse().unwrap())));
        let (retry, replace) = (
            Wishes {
                retry: true,
                ..Wishes::default()
            },
            Wishes {
                replace: true,
                ..Wishes::default()
            },
        );
        let none = Wishes::default();
        for (image, on_trial, wishes, expected) in [
            ("ee", None, none, go(None)),
            ("cc", None, none, go(Some("Base-2"))),
            ("bb", None, none, Err("--retry takes it again")),
            ("bb", None, retry, go(Some("Base-1"))),
            ("ff", None, none, Err("a rollback has left Base-4")),
            ("ff", None, retry, go(Some("Base-4"))),
            (
                "ee",
                Some(("Base-2.1", 0)),
                none,
                Err("waits for a restart"),
            ),
            (
                "ee",
                Some(("Base-2.1", 0)),
                retry,
                Err("waits for a restart"),
            ),
            ("ee", Some(("Base-2.1", 0)), replace, go(None)),
            (
                "bb",
                Some(("Base-2.1", 0)),
                replace,
                Err("--retry takes it again"),
            ),
            // Its tries are used up, and nobody waits for it any more.
            ("ee", Some(("Base-2.1", 3)), none, go(None)),
            // It came up before.
            ("ee", Some(("Base-3.1", 0)), none, go(None)),
            ("ee", Some(("Base-0.1", 1)), none, Err("is on trial itself")),
        ] {
            let on_trial = on_trial.map(|(name, tried)| trial(name, tried));
            let facts = Facts {
                group: &group,
                booted: &booted,
                trial: on_trial.as_ref(),
                default: Some("Base-0.1"),
                image: Some(image),
            };
            match (facts.decide(wishes), expected) {
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().contains(expected), "{image}: {error}");
                }
                (found, expected) => assert_eq!(found.ok(), expected.ok(), "{image}"),
            }
        }
        let waits = Facts {
            group: &group,
            booted: &booted,
            trial: Some(&trial("Base-2.1", 0)),
            default: Some("Base-0.1"),
            image: Some("cc"),
        };
        let nothing = Decision::Nothing(Standing::Waits("Base-2.1".parse().unwrap()));
        assert_eq!(waits.decide(Wishes::default()).unwrap(), nothing);
    }

    #[test]
    fn a_default_that_never_came_up_waits_and_a_new_kernel_does_not() {
        let group = group();
        let booted = "Base-0.1".parse().unwrap();
        let kernel = OnTrial {
            kernel: Some("6.1".to_owned()),
            ..trial("Base-0.1", 0)
        };
        for (default, on_trial, expected) in [
            ("Base-2.1", None, Err("Base-2.1, of another update, waits")),
            ("Base-3.1", None, Ok(())),
            ("Base-0", None, Ok(())),
            ("Base-0.1", Some(&kernel), Ok(())),
        ] {
            let facts = Facts {
                group: &group,
                booted: &booted,
                trial: on_trial,
                default: Some(default),
                image: Some("ee"),
            };
            match (facts.decide(Wishes::default()), expected) {
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().contains(expected), "{default}: {error}");
                }
                (found, expected) => assert_eq!(found.is_ok(), expected.is_ok(), "{default}"),
            }
        }
    }
}
