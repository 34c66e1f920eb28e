//! The root line of an fstab (fstab(5)).

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
        if !is_root(line) {
            return line.to_owned();
        }
        let rest = line.trim_start();
        let rest = &rest[rest.find(char::is_whitespace).unwrap_or(rest.len())..];
        format!("{device}{rest}")
    };
    Some(fstab.split('\n').map(line).collect::<Vec<_>>().join("\n"))
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
}
