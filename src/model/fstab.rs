//! Devices in an fstab (fstab(5)).

/// Whether there is a line for `/`.
pub fn has_root(fstab: &str) -> bool {
    fstab.lines().any(is_root)
}

/// The fstab with `device` on the line for `/`; nothing if there is no such line.
pub fn with_root(fstab: &str, device: &str) -> Option<String> {
    if !has_root(fstab) {
        return None;
    }
    let line = |line: &str| {
        if is_root(line) {
            with_device(line, device)
        } else {
            line.to_owned()
        }
    };
    Some(fstab.split('\n').map(line).collect::<Vec<_>>().join("\n"))
}

/// The fstab with other devices, where `renamed` has one for that of a line.
pub fn with_devices(fstab: &str, renamed: impl Fn(&str) -> Option<String>) -> String {
    let line = |line: &str| {
        let device = line.split_ascii_whitespace().next().unwrap_or_default();
        renamed(device).map_or_else(|| line.to_owned(), |new| with_device(line, &new))
    };
    fstab.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

fn with_device(line: &str, device: &str) -> String {
    let rest = line.trim_start();
    let rest = &rest[rest.find(char::is_whitespace).unwrap_or(rest.len())..];
    format!("{device}{rest}")
}

fn is_root(line: &str) -> bool {
    let mut fields = line.split_ascii_whitespace();
    let device = fields.next().unwrap_or_default();
    !device.starts_with('#') && fields.next() == Some("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_root_line_is_changed() {
        let fstab = "# UUID=0 / ext4\nUUID=1 /boot ext4 defaults 0 2\n \tUUID=2\t /  ext4 noatime 0 1\ntmpfs /tmp tmpfs\n\n/dev/sdb1 /srv";
        assert_eq!(
            with_root(fstab, "/dev/mapper/a-b").unwrap(),
            "# UUID=0 / ext4\nUUID=1 /boot ext4 defaults 0 2\n/dev/mapper/a-b\t /  ext4 noatime 0 1\ntmpfs /tmp tmpfs\n\n/dev/sdb1 /srv"
        );
        for fstab in [
            "",
            "#/dev/x / ext4",
            "/dev/x",
            "/dev/x /root ext4",
            "LABEL=boot /boot ext4\n",
        ] {
            assert_eq!(with_root(fstab, "x"), None, "{fstab:?}");
        }
        assert_eq!(with_root("a /", "b").unwrap(), "b /");
    }

    #[test]
    fn only_what_has_another_name_gets_another_device() {
        let new = |device: &str| Some(device.strip_prefix("/dev/Old/")?.to_uppercase());
        let fstab =
            "# /dev/Old/x / ext4\n/dev/Old/x\t/ ext4\n\n /dev/Old/y none swap\nLABEL=boot /boot\n";
        assert_eq!(
            with_devices(fstab, new),
            "# /dev/Old/x / ext4\nX\t/ ext4\n\nY none swap\nLABEL=boot /boot\n"
        );
        assert_eq!(with_devices(fstab, |_| None), fstab);
    }
}
