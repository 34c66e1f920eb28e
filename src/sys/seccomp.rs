//! System calls that programs of an image have no need of. The capabilities that they lack keep them from most
//! of what reaches further than files; these need none.

use std::io;
use std::mem::offset_of;

use libc::{c_int, c_long, seccomp_data, sock_filter};

use super::syscalls::filter_system_calls;

/// What can look out of the namespaces, and what reaches the kernel by a way that few have walked.
const DENIED: [c_long; 11] = [
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    // The kernel's log, where it is everybody's to read.
    libc::SYS_syslog,
    // The keys of root, such as passwords of volumes that systemd has asked for, are in no namespace.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
];

/// `AUDIT_ARCH_X86_64` (linux/audit.h), which is what this program is built for.
const ARCHITECTURE: u32 = 0xc000_003e;
/// The numbers of system calls from here on are those of x32 (asm/unistd.h).
const X32: u32 = 0x4000_0000;
const NUMBER_AT: usize = offset_of!(seccomp_data, nr);
const ARCHITECTURE_AT: usize = offset_of!(seccomp_data, arch);
/// The lower half of the first argument.
const FIRST_AT: usize = offset_of!(seccomp_data, args);

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const EQUALS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const REACHES: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const HAS_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Denies them to this process, and to all that it becomes and starts. They fail as if it lacked a capability.
pub fn deny() -> io::Result<()> {
    filter_system_calls(&mut filter())
}

fn filter() -> Vec<sock_filter> {
    let denied = fail_with(libc::EPERM);
    let allowed = step(RETURN, libc::SECCOMP_RET_ALLOW);
    let mut filter = vec![
        load(ARCHITECTURE_AT),
        // Else the numbers mean something else.
        jump(EQUALS, ARCHITECTURE, 1, 0),
        denied,
        load(NUMBER_AT),
        jump(REACHES, X32, 0, 1),
        denied,
        // Another user namespace has all capabilities inside.
        jump(EQUALS, number(libc::SYS_clone), 0, 4),
        load(FIRST_AT),
        jump(HAS_BIT, number(libc::CLONE_NEWUSER.into()), 0, 1),
        denied,
        allowed,
        // Its flags are in memory, where no filter sees them. The C library takes the other one then.
        jump(EQUALS, number(libc::SYS_clone3), 0, 1),
        fail_with(libc::ENOSYS),
        // The way to the host of a virtual machine, which is in no network namespace.
        jump(EQUALS, number(libc::SYS_socket), 0, 4),
        load(FIRST_AT),
        jump(EQUALS, number(libc::AF_VSOCK.into()), 0, 1),
        denied,
        allowed,
    ];
    for call in DENIED {
        filter.extend([jump(EQUALS, number(call), 0, 1), denied]);
    }
    filter.push(allowed);
    filter
}

/// As the filter sees a number, which is never negative.
fn number(number: c_long) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn fail_with(errno: c_int) -> sock_filter {
    step(RETURN, libc::SECCOMP_RET_ERRNO | number(errno.into()))
}

fn load(at: usize) -> sock_filter {
    step(LOAD, u32::try_from(at).unwrap_or(u32::MAX))
}

fn step(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

/// Goes on after so many instructions if it is so, and if not.
fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    #[allow(clippy::cast_possible_truncation, reason = "these codes have 16 bits")]
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use nix::errno::Errno;
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::prctl;
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

    use super::*;

    /// The name of a test, which runs itself once more as the process that is denied them.
    const THIS_TEST: &str = "sys::seccomp::tests::what_is_denied_fails_and_all_else_goes_on";

    #[test]
    fn what_is_denied_fails_and_all_else_goes_on() {
        if std::env::var_os("IMGBASED_TEST_DENIED").is_none() {
            let again = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", THIS_TEST])
                .env("IMGBASED_TEST_DENIED", "1")
                .output()
                .unwrap();
            assert!(again.status.success(), "{again:?}");
            return;
        }
        // A test runs in a thread, and what it denies is denied to that alone.
        prctl::set_no_new_privs().unwrap();
        deny().unwrap();
        let socket = |family| {
            let protocol: Option<SockProtocol> = None;
            socket(family, SockType::Stream, SockFlag::empty(), protocol).map(drop)
        };
        for flags in [CloneFlags::CLONE_NEWUSER, CloneFlags::CLONE_FILES] {
            assert_eq!(unshare(flags), Err(Errno::EPERM), "{flags:?}");
        }
        assert_eq!(socket(AddressFamily::Vsock), Err(Errno::EPERM));
        assert_eq!(socket(AddressFamily::Unix), Ok(()));
        // Threads and processes.
        assert_eq!(thread::spawn(|| 1).join().unwrap(), 1);
        let unshare = Command::new("unshare").args(["--user", "true"]).output();
        assert!(!unshare.unwrap().status.success());
        assert!(Command::new("true").status().unwrap().success());
    }
}
