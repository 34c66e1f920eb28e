//! Devices in an fstab (fstab(5)). It need not be UTF-8: its comments hold what people have written.

use std::ops::Range;

/// The line for `/` in an fstab, made that of a volume.
#[derive(Debug, PartialEq, Eq)]
pub struct RootLine {
    /// The whole fstab.
    pub text: Vec<u8>,
    /// The options that were left out, since they belong to another type of filesystem.
    pub dropped: Vec<String>,
}

/// Options of mount(8) that every filesystem takes. What ends in `=` or `-` goes on.
const COMMON: &str = "defaults auto noauto user nouser users owner group nofail _netdev ro rw exec noexec suid \
    nosuid dev nodev sync async dirsync atime noatime diratime nodiratime relatime \
    norelatime strictatime nostrictatime lazytime nolazytime iversion noiversion mand nomand \
    silent loud symfollow nosymfollow x- X- comment= context= fscontext= defcontext= \
    rootcontext= helper= uhelper=";
/// ext4(5)
const EXT4: &str = "acl noacl user_xattr nouser_xattr barrier nobarrier barrier= data= data_err= commit= \
    errors= journal_checksum nojournal_checksum journal_async_commit journal_ioprio= discard \
    nodiscard delalloc nodelalloc noload norecovery bsddf minixdf resuid= resgid= sb= grpid \
    bsdgroups nogrpid sysvgroups debug quota noquota usrquota grpquota prjquota usrjquota= \
    grpjquota= jqfmt= stripe= auto_da_alloc noauto_da_alloc max_batch_time= min_batch_time= \
    block_validity noblock_validity dioread_lock dioread_nolock inode_readahead_blks= \
    init_itable= init_itable noinit_itable i_version dax dax= max_dir_size_kb=";
/// xfs(5)
const XFS: &str = "allocsize= attr2 noattr2 dax dax= discard nodiscard grpid bsdgroups nogrpid sysvgroups \
    filestreams ikeep noikeep inode32 inode64 largeio nolargeio logbufs= logbsize= noalign \
    norecovery nouuid quota noquota uquota usrquota uqnoenforce qnoenforce gquota grpquota \
    gqnoenforce pquota prjquota pqnoenforce sunit= swidth= swalloc wsync";

/// Whether there is a line for `/`.
pub fn has_root(fstab: &[u8]) -> bool {
    lines(fstab).any(is_root)
}

/// Whether there is a line for the directory `path`, which has no white space but blanks.
pub fn has(fstab: &[u8], path: &str) -> bool {
    let wanted = path.replace(' ', "\\040");
    lines(fstab).any(|line| {
        let at = directory(line).and_then(|at| std::str::from_utf8(at).ok());
        at.is_some_and(|at| at.trim_end_matches('/') == wanted)
    })
}

/// Mounts the boot partition of any host.
const BOOT: &str = "LABEL=boot /boot auto defaults,nofail 0 2";

/// The directories, or `none`, of the lines whose device has a name that it has on one host only, but for `/`.
pub fn of_one_host(fstab: &[u8]) -> Vec<String> {
    let lines = lines(fstab).filter(|line| is_of_one_disk(line) && !is_root(line));
    let directories = lines.filter_map(directory);
    directories
        .map(|at| String::from_utf8_lossy(at).into_owned())
        .collect()
}

/// The fstab for any host: without those lines and the line for `/`, and with one for the boot partition.
pub fn of_any_host(fstab: &[u8]) -> Vec<u8> {
    let kept = lines(fstab).filter(|line| !is_root(line) && !is_of_one_disk(line));
    let mut text = kept.collect::<Vec<_>>().join(&b'\n');
    if !has(&text, "/boot") {
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
        text.extend(BOOT.as_bytes());
        text.push(b'\n');
    }
    text
}

/// The fstab with this line for the directory `path`, in place of the first that is there for it, else at the end. More
/// of them go.
pub fn with_line(fstab: &[u8], path: &str, line: &str) -> Vec<u8> {
    let mut new: Vec<&[u8]> = Vec::new();
    let mut is_placed = false;
    for old in lines(fstab) {
        if !has(old, path) {
            new.push(old);
        } else if !is_placed {
            new.push(line.as_bytes());
            is_placed = true;
        }
    }
    if !is_placed {
        if new.last().is_some_and(|last| last.is_empty()) {
            new.pop();
        }
        new.extend([line.as_bytes(), b""]);
    }
    new.join(&b'\n')
}

/// Whether a line names a filesystem, partition or disk by what no other one has.
fn is_of_one_disk(line: &[u8]) -> bool {
    const NAMES: [&str; 5] = [
        "UUID=",
        "PARTUUID=",
        "/dev/disk/by-uuid/",
        "/dev/disk/by-partuuid/",
        "/dev/disk/by-id/",
    ];
    let device = fields(line).next().map(|field| &line[field]);
    device.is_some_and(|device| NAMES.iter().any(|name| device.starts_with(name.as_bytes())))
}

/// The fstab with `device` on the line for `/`, and with the filesystem that is there; nothing if there is no such
/// line. Of a line for another filesystem stay the options that this one takes as well.
pub fn with_root(fstab: &[u8], device: &[u8], fstype: &str) -> Option<RootLine> {
    if !has_root(fstab) {
        return None;
    }
    let mut dropped = Vec::new();
    let new = lines(fstab).map(|line| {
        if is_root(line) {
            let line = with_fstype(line, fstype, &mut dropped);
            with_device(&line, device)
        } else {
            line.to_owned()
        }
    });
    let text = new.collect::<Vec<_>>().join(&b'\n');
    Some(RootLine { text, dropped })
}

/// The fstab with other devices, where `renamed` has one for that of a line.
pub fn with_devices(fstab: &[u8], renamed: impl Fn(&str) -> Option<String>) -> Vec<u8> {
    let new = lines(fstab).map(|line| {
        let device = fields(line).next().map(|field| &line[field]);
        let device = device.and_then(|device| std::str::from_utf8(device).ok());
        let new = device.and_then(&renamed);
        new.map_or_else(|| line.to_owned(), |new| with_device(line, new.as_bytes()))
    });
    new.collect::<Vec<_>>().join(&b'\n')
}

fn lines(fstab: &[u8]) -> impl Iterator<Item = &[u8]> {
    fstab.split(|byte| *byte == b'\n')
}

/// Where the fields of a line are.
fn fields(line: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut end = 0;
    line.split(u8::is_ascii_whitespace)
        .filter_map(move |field| {
            let start = end;
            end += field.len() + 1;
            (!field.is_empty()).then(|| start..start + field.len())
        })
}

fn is_root(line: &[u8]) -> bool {
    directory(line) == Some(b"/")
}

/// The second field of a line, if that is no comment.
fn directory(line: &[u8]) -> Option<&[u8]> {
    let mut fields = fields(line).map(|field| &line[field]);
    let device = fields.next()?;
    fields.next().filter(|_| !device.starts_with(b"#"))
}

fn with_device(line: &[u8], device: &[u8]) -> Vec<u8> {
    let rest = fields(line).next().map_or(line.len(), |field| field.end);
    [device, &line[rest..]].concat()
}

fn with_fstype(line: &[u8], fstype: &str, dropped: &mut Vec<String>) -> Vec<u8> {
    let mut fields = fields(line).skip(2);
    let Some(of_type) = fields.next() else {
        return line.to_owned();
    };
    if line[of_type.clone()] == *fstype.as_bytes() {
        return line.to_owned();
    }
    let mut new = [&line[..of_type.start], fstype.as_bytes()].concat();
    let mut rest = of_type.end;
    if let Some(of_options) = fields.next() {
        let (mut kept, others): (Vec<&[u8]>, Vec<&[u8]>) =
            options(&line[of_options.clone()]).partition(|option| takes(fstype, option));
        if kept.is_empty() {
            kept.push(b"defaults");
        }
        new.extend(&line[rest..of_options.start]);
        new.extend(kept.join(&b','));
        rest = of_options.end;
        let shown = others.into_iter().map(String::from_utf8_lossy);
        dropped.extend(shown.map(std::borrow::Cow::into_owned));
    }
    new.extend(&line[rest..]);
    new
}

/// The options of a list. A comma between quotes belongs to an option, as in a label.
fn options(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut is_quoted = false;
    list.split(move |byte| {
        is_quoted ^= *byte == b'"';
        *byte == b',' && !is_quoted
    })
    .filter(|option| !option.is_empty())
}

/// Whether a filesystem takes an option.
fn takes(fstype: &str, option: &[u8]) -> bool {
    let own = match fstype {
        "ext4" => EXT4,
        "xfs" => XFS,
        _ => "",
    };
    let mut known = COMMON.split(' ').chain(own.split(' '));
    known.any(|known| {
        let goes_on = known.ends_with(['=', '-']);
        option == known.as_bytes() || goes_on && option.starts_with(known.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_the_place_of_those_for_its_directory() {
        const LINE: &str = "UUID=1 /boot ext4 defaults 0 2";
        for (old, new) in [
            ("", "LINE\n"),
            ("# x\n", "# x\nLINE\n"),
            ("# x", "# x\nLINE\n"),
            (
                "LABEL=boot /boot auto defaults 0 2\ntmpfs /tmp tmpfs\n",
                "LINE\ntmpfs /tmp tmpfs\n",
            ),
            ("a / b\nc /boot/ d\ne /boot f", "a / b\nLINE"),
            (
                "#a /boot b\nc /boot/efi d\n",
                "#a /boot b\nc /boot/efi d\nLINE\n",
            ),
        ] {
            let found = with_line(old.as_bytes(), "/boot", LINE);
            let found = String::from_utf8(found).unwrap();
            assert_eq!(found, new.replace("LINE", LINE), "{old}");
        }
    }

    #[test]
    fn a_directory_is_found_by_its_second_field() {
        let fstab = b"# caf\xe9 /home\n#/dev/sda1 /srv ext4\n/dev/sda2\t/home/ ext4 defaults 0 2\nx /a\\040b xfs\n/var";
        for (path, wanted) in [
            ("/home", true),
            ("/a b", true),
            ("/srv", false),
            ("/var", false),
            ("/hom", false),
        ] {
            assert_eq!(has(fstab, path), wanted, "{path}");
        }
    }

    #[test]
    fn an_fstab_for_any_host_names_no_disk_of_one() {
        const BOOT: &str = "LABEL=boot /boot auto defaults,nofail 0 2\n";
        for (fstab, others, wanted) in [
            ("", "", BOOT.to_owned()),
            (BOOT, "", BOOT.to_owned()),
            ("# UUID=1 /x\n", "", format!("# UUID=1 /x\n{BOOT}")),
            (
                "UUID=1 / ext4\nUUID=2\t/boot ext4\ntmpfs /tmp tmpfs",
                "/boot",
                format!("tmpfs /tmp tmpfs\n{BOOT}"),
            ),
            (
                "PARTUUID=1 none swap\n/dev/disk/by-id/x /srv xfs\n/dev/sdb1 /boot ext4\n",
                "none /srv",
                "/dev/sdb1 /boot ext4\n".to_owned(),
            ),
            ("/dev/sda1 / ext4\n", "", BOOT.to_owned()),
        ] {
            assert_eq!(of_one_host(fstab.as_bytes()).join(" "), others, "{fstab:?}");
            let made = of_any_host(fstab.as_bytes());
            assert_eq!(String::from_utf8_lossy(&made), wanted, "{fstab:?}");
            assert_eq!(of_any_host(&made), made, "{fstab:?}");
        }
    }

    fn root(fstab: &str, device: &str, fstype: &str) -> Option<(String, String)> {
        let line = with_root(fstab.as_bytes(), device.as_bytes(), fstype)?;
        Some((
            String::from_utf8(line.text).unwrap(),
            line.dropped.join(" "),
        ))
    }

    #[test]
    fn only_the_root_line_is_changed() {
        let fstab = "# UUID=0 / ext4\nUUID=1 /boot ext4 defaults 0 2\n \tUUID=2\t /  ext4 noatime 0 1\ntmpfs /tmp tmpfs\n\n/dev/sdb1 /srv";
        assert_eq!(
            root(fstab, "/dev/mapper/a-b", "ext4").unwrap().0,
            "# UUID=0 / ext4\nUUID=1 /boot ext4 defaults 0 2\n/dev/mapper/a-b\t /  ext4 noatime 0 1\ntmpfs /tmp tmpfs\n\n/dev/sdb1 /srv"
        );
        for fstab in [
            "",
            "#/dev/x / ext4",
            "/dev/x",
            "/dev/x /root ext4",
            "LABEL=boot /boot ext4\n",
        ] {
            assert_eq!(root(fstab, "x", "ext4"), None, "{fstab:?}");
        }
        assert_eq!(root("a /", "b", "ext4").unwrap().0, "b /");
    }

    #[test]
    fn the_root_line_gets_the_filesystem_that_is_there() {
        for (line, fstype, expected, dropped) in [
            ("a / ext4 noatime 0 1", "ext4", "d / ext4 noatime 0 1", ""),
            // Whatever it is, somebody meant it for this filesystem.
            ("a / ext4 unheard", "ext4", "d / ext4 unheard", ""),
            ("a / auto defaults", "xfs", "d / xfs defaults", ""),
            (
                "a / ext3 errors=remount-ro,data=journal",
                "ext4",
                "d / ext4 errors=remount-ro,data=journal",
                "",
            ),
            (
                "a / btrfs subvol=root,compress=zstd:1 0 0",
                "ext4",
                "d / ext4 defaults 0 0",
                "subvol=root compress=zstd:1",
            ),
            (
                "a\t/  btrfs\tsubvol=@,noatime\t0 0\r",
                "ext4",
                "d\t/  ext4\tnoatime\t0 0\r",
                "subvol=@",
            ),
            (
                "a / ext4 errors=remount-ro,discard,x-systemd.growfs",
                "xfs",
                "d / xfs discard,x-systemd.growfs",
                "errors=remount-ro",
            ),
            (
                "a / xfs inode64,logbufs=8,nofail",
                "ext4",
                "d / ext4 nofail",
                "inode64 logbufs=8",
            ),
            (
                "a / btrfs context=\"u:r:t:s0:c1,c2\",ssd",
                "xfs",
                "d / xfs context=\"u:r:t:s0:c1,c2\"",
                "ssd",
            ),
            ("a / btrfs", "ext4", "d / ext4", ""),
            ("a / xfs ,, 0 0", "ext4", "d / ext4 defaults 0 0", ""),
            ("a / squashfs ro", "ext4", "d / ext4 ro", ""),
            ("a / btrfs rotten", "ext4", "d / ext4 defaults", "rotten"),
        ] {
            let expected = Some((expected.to_owned(), dropped.to_owned()));
            assert_eq!(root(line, "d", fstype), expected, "{line}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_stay() {
        let fstab = b"# caf\xe9\na / ext4 x-\xff 0 1\nb\xfe /srv ext4\n";
        let expected = b"# caf\xe9\nd / xfs x-\xff 0 1\nb\xfe /srv ext4\n";
        assert_eq!(with_root(fstab, b"d", "xfs").unwrap().text, expected);
        assert!(has_root(fstab));
        assert_eq!(with_devices(fstab, |_| None), fstab);
        let new = |device: &str| (device == "a").then(|| "new".to_owned());
        let expected = b"# caf\xe9\nnew / ext4 x-\xff 0 1\nb\xfe /srv ext4\n";
        assert_eq!(with_devices(fstab, new), expected);
    }

    #[test]
    fn only_what_has_another_name_gets_another_device() {
        let new = |device: &str| Some(device.strip_prefix("/dev/Old/")?.to_uppercase());
        let fstab =
            b"# /dev/Old/x / ext4\n/dev/Old/x\t/ ext4\n\n /dev/Old/y none swap\nLABEL=boot /boot\n";
        assert_eq!(
            with_devices(fstab, new),
            b"# /dev/Old/x / ext4\nX\t/ ext4\n\nY none swap\nLABEL=boot /boot\n"
        );
        assert_eq!(with_devices(fstab, |_| None), fstab);
    }
}
