//! What the kernel is told in the end.

use std::fs;

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};

use super::say;
use crate::sys::syscalls;

/// Where `systemctl reboot --reboot-argument=` leaves its text.
const REBOOT_ARGUMENT: &str = "/run/systemd/reboot-param";

/// Switches the machine off or restarts it. Returns only if the kernel refuses both that and a restart.
pub fn end(verb: Option<&str>) -> Result<()> {
    let mode = mode(verb);
    if mode == RebootMode::RB_AUTOBOOT {
        let argument = fs::read_to_string(REBOOT_ARGUMENT).unwrap_or_default();
        if let Some(argument) = argument.lines().next().filter(|text| !text.is_empty()) {
            // A kernel that does not know it restarts all the same.
            let _ = syscalls::restart_with(argument);
        }
    }
    let Err(error) = reboot(mode);
    // There is nothing loaded for kexec, say.
    let verb = verb.unwrap_or_default();
    say(format!("the kernel refuses {verb}, restarting: {error}"));
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    Err(error).context("the kernel refuses to restart")
}

/// The verbs are those of systemd-shutdown(8). A machine whose init can only exit is switched off.
fn mode(verb: Option<&str>) -> RebootMode {
    match verb {
        Some("poweroff" | "exit") => RebootMode::RB_POWER_OFF,
        Some("halt") => RebootMode::RB_HALT_SYSTEM,
        Some("kexec") => RebootMode::RB_KEXEC,
        _ => RebootMode::RB_AUTOBOOT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_of_systemd_is_what_the_kernel_is_told() {
        for (verb, expected) in [
            (Some("poweroff"), RebootMode::RB_POWER_OFF),
            (Some("exit"), RebootMode::RB_POWER_OFF),
            (Some("halt"), RebootMode::RB_HALT_SYSTEM),
            (Some("kexec"), RebootMode::RB_KEXEC),
            (Some("reboot"), RebootMode::RB_AUTOBOOT),
            (Some("dance"), RebootMode::RB_AUTOBOOT),
            (None, RebootMode::RB_AUTOBOOT),
        ] {
            assert_eq!(mode(verb), expected, "{verb:?}");
        }
    }
}
