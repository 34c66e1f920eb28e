//! Archives for an initramfs, as cpio(1) writes them in the format newc.

/// The programs at these paths, with their content. The directories are there already.
pub fn archive(programs: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (path, content) in programs {
        append(&mut archive, path, 0o100_755, content.as_bytes());
    }
    append(&mut archive, "TRAILER!!!", 0, b"");
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive
}

fn append(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let fields = [
        0,
        mode as usize,
        0,
        0,
        1,
        0,
        content.len(),
        0,
        0,
        0,
        0,
        name.len() + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08X}").bytes());
    }
    archive.extend(name.bytes().chain([0]));
    for part in [&b""[..], content] {
        archive.extend(part);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
}
