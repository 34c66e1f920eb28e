//! What the kernel is asked for that no crate here has a safe function for. There is no other unsafe code.
#![allow(
    unsafe_code,
    reason = "each call hands the kernel memory that is valid until it returns"
)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

/// `struct dm_ioctl` (linux/dm-ioctl.h).
#[repr(C)]
struct DmIoctl {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// The size is part of the number of the ioctl, and the kernel refuses another one.
#[allow(clippy::cast_possible_truncation, reason = "it is 312")]
const DM_IOCTL_SIZE: u32 = size_of::<DmIoctl>() as u32;
const _: () = assert!(DM_IOCTL_SIZE == 312);

/// `DM_DEV_REMOVE`: reads and writes its argument, of the type 0xfd (asm-generic/ioctl.h).
const DM_DEV_REMOVE: libc::Ioctl = (3 << 30) | ((DM_IOCTL_SIZE as libc::Ioctl) << 16) | 0xfd04;
/// linux/loop.h
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;

/// Removes the device-mapper device with this number. Its targets write what they have to before.
pub fn remove_mapped_device(number: u64) -> io::Result<()> {
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/mapper/control")?;
    let mut argument = DmIoctl {
        version: [4, 0, 0],
        data_size: DM_IOCTL_SIZE,
        data_start: 0,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_nr: 0,
        padding: 0,
        dev: number,
        name: [0; 128],
        uuid: [0; 129],
        data: [0; 7],
    };
    // SAFETY: the kernel reads and writes `data_size` bytes, which the argument has.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), DM_DEV_REMOVE, &raw mut argument) };
    Ok(Errno::result(result).map(drop)?)
}

/// Takes the file from a loop device, once nobody has the device open.
pub fn clear_loop_device(path: &Path) -> io::Result<()> {
    let device = File::open(path)?;
    // SAFETY: this ioctl has no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD, 0) };
    Ok(Errno::result(result).map(drop)?)
}

/// Has all files from the number `first` on be closed when this process becomes another program: also those
/// that whoever has started it has left open.
pub fn close_on_exec(first: libc::c_uint) -> io::Result<()> {
    let (last, flags) = (libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: it hands over no memory, and all files stay open in this program.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    Ok(Errno::result(result).map(drop)?)
}

/// Has the kernel ask a filter about each system call of this process from here on, and of all that it becomes
/// and starts (seccomp(2)).
pub fn filter_system_calls(filter: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies `len` instructions, which the filter has.
    let result = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::c_ulong::from(libc::SECCOMP_MODE_FILTER),
            &raw const program,
        )
    };
    Ok(Errno::result(result).map(drop)?)
}

/// swapoff(2)
pub fn disable_swap(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends in a zero byte.
    let result = unsafe { libc::swapoff(path.as_ptr()) };
    Ok(Errno::result(result).map(drop)?)
}

/// reboot(2) with a text for the firmware (`LINUX_REBOOT_CMD_RESTART2`). Returns only if it fails.
pub fn restart_with(argument: &str) -> io::Result<()> {
    let argument = CString::new(argument)?;
    // SAFETY: the argument ends in a zero byte, and the kernel copies it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_reboot,
            libc::LINUX_REBOOT_MAGIC1,
            libc::LINUX_REBOOT_MAGIC2,
            libc::LINUX_REBOOT_CMD_RESTART2,
            argument.as_ptr(),
        )
    };
    Ok(Errno::result(result).map(drop)?)
}
