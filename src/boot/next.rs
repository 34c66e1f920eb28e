//! What a boot loader does at the next start.

use std::fmt;

/// What the next start boots, as the files are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// An entry of ours.
    Entry { id: String, why: Why },
    /// An entry of another system, by its id, or an id that the loader alone knows.
    Other(String),
    /// The kernel of an entry without its initramfs, which stops.
    KernelOnly(String),
    /// The machine starts again: a file of an entry on trial cannot be read.
    Restart(String),
    /// The loader asks for a name and a password before it boots this entry.
    Password(String),
    /// The loader waits for somebody: no kernel of this entry can be read.
    Stop(String),
    /// The loader waits for somebody to choose an entry: none has come up.
    Wait,
    /// The loader does not show our entries, for this reason.
    Hidden(String),
}

/// Why an entry boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was asked for, for one start.
    Once,
    /// A try of a trial, which is counted.
    Try,
    Default,
    /// The default is not there.
    Instead,
}

impl Next {
    /// The entry of ours that is chosen, whatever becomes of it.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Entry { id, .. }
            | Self::KernelOnly(id)
            | Self::Restart(id)
            | Self::Password(id)
            | Self::Stop(id) => Some(id),
            Self::Other(_) | Self::Wait | Self::Hidden(_) => None,
        }
    }

    /// Whether an entry of ours boots that somebody has chosen, for a start or for a trial.
    pub fn is_chosen(&self) -> bool {
        matches!(
            self,
            Self::Entry {
                why: Why::Once | Why::Try,
                ..
            }
        )
    }

    /// What keeps the next start from booting what was chosen, with what to do; `None` if nothing does.
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Entry {
                why: Why::Instead,
                id,
            } => Some(format!(
                "the default is not set, or not in the menu, so {id} boots; `imgbased-helper boot default` \
                 chooses another"
            )),
            Self::Entry { .. } | Self::Other(_) => None,
            Self::KernelOnly(id) => Some(format!(
                "the kernel of {id} boots without its initramfs, which cannot be read; `imgbased-helper \
                 boot repair` writes it"
            )),
            Self::Restart(id) => Some(format!(
                "the machine starts again, as a kernel or initramfs of {id} cannot be read; \
                 `imgbased-helper boot repair` writes it"
            )),
            Self::Password(id) => Some(format!(
                "GRUB asks for a name and a password before {id} boots, as superusers are set; put the line \
                 `grub_arg --unrestricted` into its entry, and run `imgbased-helper boot repair`"
            )),
            Self::Stop(id) => Some(format!(
                "the boot loader stops at {id}, whose kernel or initramfs cannot be read; \
                 `imgbased-helper boot repair` writes it"
            )),
            Self::Wait => Some(
                "the boot loader waits for somebody: no layer that has come up is in the menu"
                    .to_owned(),
            ),
            Self::Hidden(reason) => Some(reason.clone()),
        }
    }
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry { id, why } => {
                f.write_str(id)?;
                f.write_str(match why {
                    Why::Once => ", once",
                    Why::Try => ", on trial",
                    Why::Default => "",
                    Why::Instead => ", as the default is not there",
                })
            }
            Self::Other(id) => write!(f, "another system, {id}"),
            _ => f.write_str(&self.problem().unwrap_or_default()),
        }
    }
}
