//! The processes that systemd has left alive, since a root can depend on them
//! (<https://systemd.io/ROOT_STORAGE_DAEMONS>). They may hold what has to be unmounted.

use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::OLD_ROOT;

const PROC: &str = "/proc";
/// Shows a picture until the machine is off, and stands on no list of what stores data. Where it runs from the
/// old root, that cannot be unmounted.
const SPLASH: &str = "plymouthd";

/// All but this one, which is the first, as `123 (name)`.
pub fn all() -> Vec<String> {
    let processes = running(Path::new(PROC)).into_iter();
    processes
        .map(|process| format!("{} ({})", process.id, process.name))
        .collect()
}

/// Ends the splash screen if it is a program of the old root.
pub fn end_splash() {
    for process in running(Path::new(PROC)) {
        if is_splash(&process) {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(process.id), Signal::SIGKILL);
        }
    }
}

struct Process {
    id: i32,
    name: String,
    /// As seen from the new root.
    program: String,
}

fn is_splash(process: &Process) -> bool {
    process.name == SPLASH && Path::new(&process.program).starts_with(OLD_ROOT)
}

/// The processes in `proc`; the kernel's own threads have no program.
fn running(proc: &Path) -> Vec<Process> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let process = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let program = fs::read_link(entry.path().join("exe")).ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some(Process {
            id,
            name: name.trim_end().to_owned(),
            program: program.to_string_lossy().into_owned(),
        })
    };
    let processes = entries.filter_map(process);
    processes.filter(|process| process.id != 1).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_splash_screen_of_the_old_root_is_ended() {
        let proc = tempfile::tempdir().unwrap();
        for (id, name, program) in [
            ("1", "shutdown", "/shutdown"),
            ("12", "mdmon", "/oldroot/usr/sbin/mdmon"),
            ("13", "plymouthd", "/usr/sbin/plymouthd (deleted)"),
            ("14", "plymouthd", "/oldroot/usr/sbin/plymouthd"),
        ] {
            let dir = proc.path().join(id);
            fs::create_dir(&dir).unwrap();
            symlink(program, dir.join("exe")).unwrap();
            fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
        }
        // A thread of the kernel, and what is no process.
        fs::create_dir(proc.path().join("2")).unwrap();
        fs::write(proc.path().join("2/comm"), "kthreadd\n").unwrap();
        fs::create_dir(proc.path().join("sys")).unwrap();

        let mut processes = running(proc.path());
        processes.sort_unstable_by_key(|process| process.id);
        let ids: Vec<_> = processes.iter().map(|process| process.id).collect();
        assert_eq!(ids, [12, 13, 14]);
        let ended: Vec<_> = processes.iter().filter(|p| is_splash(p)).collect();
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].id, 14);
    }
}
