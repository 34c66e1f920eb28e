//! What `check` finds: what it is about, what is wrong with it, and how it is put right.

use std::fmt;
use std::path::PathBuf;

use crate::model::name::LvName;

/// The part of a host in which something is not right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    Boot,
    Mounts,
    #[default]
    Volumes,
    Pool,
}

/// One thing that is not right.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub part: Part,
    /// What it is about, as people name it.
    pub subject: String,
    pub problem: String,
    pub repair: Repair,
}

impl Finding {
    /// Tells it from all others.
    pub fn name(&self) -> (String, String) {
        (self.subject.clone(), self.problem.clone())
    }
}

/// What was found so far, and the part of the host that is looked at.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<Finding>, pub Part);

impl Findings {
    pub fn add(&mut self, subject: &dyn fmt::Display, problem: &str, repair: Repair) {
        self.0.push(Finding {
            part: self.1,
            subject: subject.to_string(),
            problem: problem.to_owned(),
            repair,
        });
    }

    /// The same for what a person has to do.
    pub fn advise(&mut self, subject: &dyn fmt::Display, problem: &str, advice: &str) {
        self.add(subject, problem, Repair::Advice(advice.to_owned()));
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    RemoveGroup,
    RemoveVolume(LvName),
    MakeReadOnly(LvName),
    SkipActivation(LvName),
    AutoExtend(LvName),
    ImportDevices,
    /// Of volumes for their snapshots.
    Exchange,
    /// Of bases that are gone.
    RemoveListings,
    Rename,
    Identify(LvName),
    WriteEntry(LvName),
    RemoveEntry(LvName),
    WriteMenu,
    RebuildEnv,
    SetDefault(LvName),
    /// The entry with this id, of a layer or base.
    Confirm(LvName, String),
    EndTrial,
    /// Of a trial whose tries are used up, which ends it as well.
    RecordFailure,
    RemoveFile(PathBuf),
    /// For a person to do.
    Advice(String),
}

/// The order of repairs: volumes, then the entries that are compared with them, then which of them boots
/// and files that no entry needs. What only a person can do is told last: a repair may have done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Volumes,
    Entries,
    Selection,
    Advice,
}

impl Phase {
    pub const ALL: [Self; 4] = [Self::Volumes, Self::Entries, Self::Selection, Self::Advice];
}

impl Repair {
    pub fn phase(&self) -> Phase {
        match self {
            Self::RemoveGroup
            | Self::RemoveVolume(_)
            | Self::MakeReadOnly(_)
            | Self::SkipActivation(_)
            | Self::AutoExtend(_)
            | Self::ImportDevices
            | Self::Exchange
            | Self::RemoveListings => Phase::Volumes,
            Self::SetDefault(_)
            | Self::Confirm(..)
            | Self::EndTrial
            | Self::RecordFailure
            | Self::RemoveFile(_) => Phase::Selection,
            Self::Advice(_) => Phase::Advice,
            _ => Phase::Entries,
        }
    }

    /// Whether `--repair` does it.
    pub fn is_automatic(&self) -> bool {
        !matches!(self, Self::Advice(_))
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RemoveGroup => f.write_str("remove the group, so that its disks are empty again"),
            Self::RemoveVolume(name) => write!(f, "remove the volume {name}"),
            Self::MakeReadOnly(name) => write!(f, "make the volume {name} read-only"),
            Self::SkipActivation(name) => write!(f, "have {name} stay inactive until it is booted"),
            Self::AutoExtend(name) => write!(f, "have {name} extended before it is full"),
            Self::ImportDevices => f.write_str("enter them in the devices file"),
            Self::Exchange => {
                f.write_str("have all snapshots from before that layer take their places")
            }
            Self::RemoveListings => f.write_str("remove them"),
            Self::Rename => f.write_str(
                "give them, what boots, and the fstab of each layer the name that it has",
            ),
            Self::Identify(name) => write!(f, "have the boot entry of {name} name the UUID"),
            Self::WriteEntry(name) => write!(f, "write the boot entry of {name}"),
            Self::RemoveEntry(name) => write!(f, "remove the boot entry of {name}"),
            Self::WriteMenu => f.write_str("render the menu from the boot entries"),
            Self::RebuildEnv => f.write_str("write what GRUB reads of it into a new one"),
            Self::SetDefault(name) => write!(f, "make {name} the default"),
            Self::Confirm(name, _) => {
                write!(f, "have {name} stop where it fails, as a default does")
            }
            Self::EndTrial => f.write_str("boot the default"),
            Self::RecordFailure => f.write_str("record that, and boot the default"),
            Self::RemoveFile(path) => write!(f, "remove {}", path.display()),
            Self::Advice(text) => f.write_str(text),
        }
    }
}
