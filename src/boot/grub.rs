//! The menu for a GRUB that cannot read entries itself (2.12 and before).

use super::entry::Entry;

/// The name of the menu, beside grub.cfg.
pub const MENU: &str = "imgbased.cfg";

/// The head of the menu. Paths in entries are relative to the filesystem that GRUB's own files are
/// on, whatever `root` is set to by then.
const HEAD: &str = r#"# Written by imgbased-helper from the entries in loader/entries; changes here are lost.
regexp --set=1:imgbased_boot '^(\([^)]+\))' "$prefix"
export imgbased_boot
"#;

/// Renders a menu from entries, in the order in which they come. Their options stand as they are,
/// as they do where GRUB reads the entries itself.
pub fn render_menu(entries: &[Entry]) -> String {
    let mut menu = HEAD.to_owned();
    for entry in entries {
        menu += &format!(
            "\nmenuentry '{}' --class gnu-linux --id '{}' {{\n\
             \tlinux $imgbased_boot{} {}\n\
             \tinitrd $imgbased_boot{}\n\
             }}\n",
            entry.title, entry.id, entry.linux, entry.options, entry.initrd
        );
    }
    menu
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_menu_entry_boots_what_the_entry_says() {
        let entry = Entry {
            id: "imgbased-Base-0.1".into(),
            title: "Base-0.1 (Debian, Linux 6.12)".into(),
            version: "6.12".into(),
            sort_key: "imgbased-layer".into(),
            linux: "/imgbased/vmlinuz-6.12-01".into(),
            initrd: "/imgbased/initrd-6.12-02".into(),
            options: "quiet imgbased.layer=Base-0.1".into(),
        };
        assert_eq!(
            render_menu(&[entry]).strip_prefix(HEAD).unwrap(),
            "\nmenuentry 'Base-0.1 (Debian, Linux 6.12)' --class gnu-linux --id 'imgbased-Base-0.1' {\n\
             \tlinux $imgbased_boot/imgbased/vmlinuz-6.12-01 quiet imgbased.layer=Base-0.1\n\
             \tinitrd $imgbased_boot/imgbased/initrd-6.12-02\n}\n"
        );
    }
}
