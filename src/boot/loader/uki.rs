//! Unified kernel images: a kernel, its initramfs and its options in one program for UEFI, which systemd-boot lists
//! without an entry (Boot Loader Specification, "Type #2"). What is read of one are the sections by which
//! systemd-boot sorts it: <https://uapi-group.org/specifications/specs/unified_kernel_image/>.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The section with the os-release(5) of the system.
const OS_RELEASE: &[u8; 8] = b".osrel\0\0";
/// An os-release is text of some lines.
const OS_RELEASE_MAX: u32 = 64 << 10;
/// Where the header of DOS says that the header of PE begins.
const PE_OFFSET: u64 = 0x3c;
const PE: &[u8; 4] = b"PE\0\0";
/// In bytes: the signature with the header of COFF, and the header of a section.
const COFF_HEADER: usize = 24;
const SECTION_HEADER: usize = 40;

/// The os-release in an image; nothing in a file that is none.
pub fn os_release(path: &Path) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    let Some((offset, size)) = section(&file)? else {
        return Ok(None);
    };
    let mut text = vec![0; size.min(OS_RELEASE_MAX) as usize];
    match file.read_exact_at(&mut text, offset.into()) {
        Ok(()) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) => nothing_if_short(error),
    }
}

/// Where the section is, and its size.
fn section(file: &File) -> io::Result<Option<(u32, u32)>> {
    let Some(start) = at::<4>(file, PE_OFFSET)? else {
        return Ok(None);
    };
    let start = u64::from(u32::from_le_bytes(start));
    let Some(coff) = at::<COFF_HEADER>(file, start)?.filter(|coff| coff.starts_with(PE)) else {
        return Ok(None);
    };
    let half = |from: usize| u16::from_le_bytes([coff[from], coff[from + 1]]);
    let (count, optional) = (half(6), half(20));
    let first = start + COFF_HEADER as u64 + u64::from(optional);
    for number in 0..u64::from(count) {
        let Some(header) = at::<SECTION_HEADER>(file, first + number * SECTION_HEADER as u64)?
        else {
            return Ok(None);
        };
        if !header.starts_with(OS_RELEASE) {
            continue;
        }
        let word = |from: usize| {
            let bytes = [0, 1, 2, 3].map(|at| header[from + at]);
            u32::from_le_bytes(bytes)
        };
        // Less may be used than the file has.
        return Ok(Some((word(20), word(8).min(word(16)))));
    }
    Ok(None)
}

/// So many bytes of a file; nothing where it is shorter.
fn at<const N: usize>(file: &File, offset: u64) -> io::Result<Option<[u8; N]>> {
    let mut bytes = [0; N];
    match file.read_exact_at(&mut bytes, offset) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) => nothing_if_short(error),
    }
}

fn nothing_if_short<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Ok(None),
        _ => Err(error),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::fs;

    /// A file with the headers of an image, and this os-release.
    pub fn image(os_release: &str) -> Vec<u8> {
        let mut file = b"MZ".to_vec();
        file.resize(0x3c, 0);
        file.extend(0x40_u32.to_le_bytes());
        file.extend(b"PE\0\0\x64\x86");
        // Two sections, and an optional header of four bytes.
        file.extend(2_u16.to_le_bytes());
        file.resize(file.len() + 12, 0);
        file.extend(4_u16.to_le_bytes());
        file.resize(file.len() + 2 + 4, 0);
        let size = u32::try_from(os_release.len()).unwrap();
        let start = u32::try_from(file.len() + 2 * SECTION_HEADER).unwrap();
        for (name, used, stored) in [(b".text\0\0\0", 9, 9), (OS_RELEASE, size, size + 9)] {
            file.extend(name);
            for word in [used, 0, stored, start] {
                file.extend(u32::to_le_bytes(word));
            }
            file.resize(file.len() + 16, 0);
        }
        file.extend(os_release.bytes());
        file.resize(file.len() + 9, 0);
        file
    }

    #[test]
    fn the_os_release_of_an_image_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.efi");
        let whole = image("ID=arch\n");
        let read = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            os_release(&path).unwrap()
        };
        assert_eq!(read(&whole).as_deref(), Some("ID=arch\n"));
        // It may end anywhere.
        for end in 0..whole.len() - 9 {
            assert_eq!(read(&whole[..end]), None, "{end}");
        }
        assert_eq!(read(&[0xff; 200]), None);
        assert_eq!(read(&image("")).as_deref(), Some(""));
    }
}
