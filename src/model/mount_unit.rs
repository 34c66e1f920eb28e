//! Units of systemd that mount volumes (systemd.mount(5)).

use super::volume::Mount;

/// Copies what moves to a volume when the system goes down.
pub const MOVE: &str = "imgbased-move.service";
/// Adds to the volumes below /var what is new in the image of a layer.
pub const COMPLETE: &str = "imgbased-complete.service";

/// The name of the unit that mounts something at `path`.
pub fn name(path: &str) -> String {
    format!("{}.mount", escaped(path))
}

/// The unit that mounts the volume at `device`. `source` is the file that says so.
///
/// By itself it comes after those for the paths above, and after local-fs-pre.target. It is in time for all that
/// waits for local-fs.target, whether the system can do without it or not.
pub fn render(mount: &Mount, device: &str, source: &str) -> String {
    let path = without_specifiers(&mount.path);
    let fsck = format!("systemd-fsck@{}.service", escaped(device));
    let device = without_specifiers(device);
    let before = if mount.is_required() {
        format!("local-fs.target {COMPLETE}")
    } else {
        "local-fs.target".to_owned()
    };
    let options = match mount.options.as_str() {
        "" => String::new(),
        options => format!("Options={}\n", without_specifiers(options)),
    };
    format!(
        "# As the tags of the volume say; `imgbased-helper volume list` shows it.\n\
         [Unit]\n\
         Description=The volume of all layers at {path}\n\
         Documentation=man:imgbased-helper-volume(1)\n\
         SourcePath={source}\n\
         Before={before}\n\
         Requires={fsck}\n\
         After={fsck}\n\
         \n\
         [Mount]\n\
         What={device}\n\
         Where={path}\n\
         {options}"
    )
}

/// The device and the path of a unit; those that imgbased wrote are read like that.
pub fn device_and_path(unit: &str) -> Option<(&str, &str)> {
    let value = |key: &str| {
        let found = unit.lines().find_map(|line| line.trim().strip_prefix(key));
        found.map(str::trim)
    };
    Some((value("What=")?, value("Where=")?))
}

/// A path as the names of units have it (systemd.unit(5), "STRING ESCAPING FOR INCLUSION IN UNIT NAMES").
fn escaped(path: &str) -> String {
    let path = path.trim_matches('/');
    if path.is_empty() {
        return "-".to_owned();
    }
    let mut name = String::new();
    for (at, byte) in path.bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if at == 0 => name += "\\x2e",
            b':' | b'_' | b'.' => name.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => name.push(char::from(byte)),
            _ => name += &format!("\\x{byte:02x}"),
        }
    }
    name
}

fn without_specifiers(text: &str) -> String {
    text.replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_named_as_systemd_escape_names_them() {
        for (path, unit) in [
            ("/home", "home.mount"),
            ("/var/log", "var-log.mount"),
            ("/boot", "boot.mount"),
            ("/efi", "efi.mount"),
            ("/boot/efi", "boot-efi.mount"),
            ("/srv/a-b", "srv-a\\x2db.mount"),
            ("/srv/a b@c", "srv-a\\x20b\\x40c.mount"),
            ("/.x/.y", "\\x2ex-.y.mount"),
            ("/caf\u{e9}_1:2", "caf\\xc3\\xa9_1:2.mount"),
            ("/", "-.mount"),
        ] {
            assert_eq!(name(path), unit, "{path}");
        }
    }

    #[test]
    fn a_unit_checks_and_mounts_the_volume_before_local_filesystems_are_there() {
        let mut mount = Mount {
            path: "/srv/100% a-b".to_owned(),
            name: "srv-100..a-b".to_owned(),
            options: "noatime,x=%i".to_owned(),
            moving: false,
        };
        let device = "/dev/mapper/Host--VG-srv--100..a--b";
        let unit = render(&mount, device, "/run/volumes.json");
        let fsck =
            "systemd-fsck@dev-mapper-Host\\x2d\\x2dVG\\x2dsrv\\x2d\\x2d100..a\\x2d\\x2db.service";
        for line in [
            "Before=local-fs.target",
            &format!("Requires={fsck}"),
            &format!("After={fsck}"),
            "SourcePath=/run/volumes.json",
            "What=/dev/mapper/Host--VG-srv--100..a--b",
            "Where=/srv/100%% a-b",
            "Options=noatime,x=%%i",
        ] {
            assert!(unit.lines().any(|l| l == line), "{line}: {unit}");
        }
        let read = device_and_path(&unit);
        assert_eq!(read, Some((device, "/srv/100%% a-b")));
        mount.options.clear();
        assert!(!render(&mount, device, "/x").contains("Options="));
        mount.path = "/var/log".to_owned();
        let unit = render(&mount, device, "/x");
        let order = "Before=local-fs.target imgbased-complete.service";
        assert!(unit.lines().any(|line| line == order), "{unit}");
    }

    #[test]
    fn a_unit_of_imgbased_tells_its_device_and_path() {
        let unit = "# Created by imgbased\n[Mount]\nWhat=/dev/HostVG/var_log\nWhere=/var/log\nOptions=discard\n";
        let found = device_and_path(unit);
        assert_eq!(found, Some(("/dev/HostVG/var_log", "/var/log")));
        assert_eq!(device_and_path("[Mount]\nWhat=/dev/sda1\n"), None);
    }
}
