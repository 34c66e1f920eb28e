//! Trials, as they go: pure. A layer that never came up, or a kernel that is new in its layer, boots a number of
//! times, and the default again after that, until it has come up. GRUB counts in its environment block, systemd-boot
//! in the names of entries (src/boot/loader). src/boot/README.md has the picture.

use std::fmt;

use serde::Serialize;

/// As many as the head of the menu can count, and one digit on FAT.
pub const TRIES_MAX: u32 = 9;

/// How far a layer has come, or a kernel in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It never came up, and nobody waits for that.
    New,
    /// It boots until it has come up, or its tries are used up.
    OnTrial { tries: u32, tried: u32 },
    /// It has come up. That stays true.
    Good,
    /// All its tries were in vain. It boots when a person says so.
    Failed,
}

/// What happens to it.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// It is to boot by default, after so many tries if there is something to fall back to.
    Chosen {
        tries: u32,
        has_fallback: bool,
    },
    /// The boot loader starts it for a try.
    Started,
    CameUp,
    /// What it falls back to has come up.
    FellBack,
    /// Something else was chosen.
    Dropped,
}

impl State {
    #[must_use]
    pub fn after(self, event: Event) -> Self {
        match (self, event) {
            (Self::Good, _) | (_, Event::CameUp) => Self::Good,
            (
                _,
                Event::Chosen {
                    tries: tries @ 1..,
                    has_fallback: true,
                },
            ) => Self::OnTrial {
                tries: tries.min(TRIES_MAX),
                tried: 0,
            },
            (Self::OnTrial { .. }, Event::Chosen { .. } | Event::Dropped) => Self::New,
            (Self::OnTrial { tries, tried }, Event::Started) => Self::OnTrial {
                tries,
                tried: tried + 1,
            },
            (Self::OnTrial { tries, tried }, Event::FellBack) if tried >= tries => Self::Failed,
            (state, _) => state,
        }
    }
}

/// An entry on trial.
#[derive(Debug, PartialEq, Eq)]
pub struct Trial {
    pub id: String,
    pub tries: u32,
    pub tried: u32,
}

impl Trial {
    pub fn state(&self) -> State {
        State::OnTrial {
            tries: self.tries,
            tried: self.tried,
        }
    }

    /// Whether it boots no more.
    pub fn is_over(&self) -> bool {
        self.state().after(Event::FellBack) == State::Failed
    }

    /// The same by the name of the layer that the entry boots, and by the version of the kernel where that is
    /// on trial and not the layer.
    pub fn of_layer(&self, name: String, kernel: Option<String>) -> OnTrial {
        OnTrial {
            name,
            kernel,
            tries: self.tries,
            tried: self.tried,
        }
    }
}

/// A layer on trial, or one of its kernels.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct OnTrial {
    pub name: String,
    /// The version of the kernel, where the layer has come up with another one.
    pub kernel: Option<String>,
    pub tries: u32,
    pub tried: u32,
}

impl OnTrial {
    /// What has to come up.
    pub fn subject(&self) -> String {
        subject(&self.name, self.kernel.as_deref())
    }
}

/// What has to come up, or did not: a layer, or a kernel that is new in it.
pub fn subject(layer: &str, kernel: Option<&str>) -> String {
    match kernel {
        Some(kernel) => format!("Linux {kernel} of {layer}"),
        None => layer.to_owned(),
    }
}

impl fmt::Display for OnTrial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tried {} of {} times", self.tried, self.tries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_goes_on_until_it_has_come_up_or_its_tries_are_used_up() {
        use Event::{CameUp, Chosen, Dropped, FellBack, Started};
        use State::{Failed, Good, New, OnTrial};
        let on_trial = |tries, tried| OnTrial { tries, tried };
        let chosen = |tries, has_fallback| Chosen {
            tries,
            has_fallback,
        };
        for (state, event, expected) in [
            (New, chosen(3, true), on_trial(3, 0)),
            (New, chosen(99, true), on_trial(TRIES_MAX, 0)),
            (New, chosen(0, true), New),
            (New, chosen(3, false), New),
            // A person picks it in the menu.
            (New, Started, New),
            (New, CameUp, Good),
            (New, FellBack, New),
            (New, Dropped, New),
            (on_trial(2, 0), Started, on_trial(2, 1)),
            (on_trial(2, 1), Started, on_trial(2, 2)),
            (on_trial(2, 1), FellBack, on_trial(2, 1)),
            (on_trial(2, 2), FellBack, Failed),
            (on_trial(2, 2), CameUp, Good),
            (on_trial(2, 1), CameUp, Good),
            (on_trial(2, 1), chosen(3, true), on_trial(3, 0)),
            (on_trial(2, 1), chosen(0, true), New),
            (on_trial(2, 1), Dropped, New),
            (Failed, chosen(3, true), on_trial(3, 0)),
            (Failed, chosen(0, true), Failed),
            (Failed, Started, Failed),
            (Failed, CameUp, Good),
            (Failed, FellBack, Failed),
            (Failed, Dropped, Failed),
            (Good, chosen(3, true), Good),
            (Good, Started, Good),
            (Good, CameUp, Good),
            // The power was cut before all of that was recorded.
            (Good, FellBack, Good),
            (Good, Dropped, Good),
        ] {
            assert_eq!(state.after(event), expected, "{state:?}, {event:?}");
        }
    }
}
