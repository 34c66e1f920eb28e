//! Trials: a layer that never came up, or a kernel that is new in its layer, boots a number of times, and the
//! default again after that, until it has come up. GRUB counts, in its environment block; systemd-boot counts, in the names of entries
//! (src/boot/loader/counting.rs).

use std::fmt;

use serde::Serialize;

/// As many as the head of the menu can count, and one digit on FAT.
pub const TRIES_MAX: u32 = 9;

/// An entry on trial.
#[derive(Debug, PartialEq, Eq)]
pub struct Trial {
    pub id: String,
    pub tries: u32,
    pub tried: u32,
}

impl Trial {
    /// Whether it boots no more.
    pub fn is_over(&self) -> bool {
        self.tried >= self.tries
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
#[derive(Clone, Serialize)]
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
