# lvm.conf(5), "Profile configuration": goes with the thin pools that imgbased-helper makes. dmeventd(8)
# extends such a pool, its data or its metadata, by a twentieth when it is four fifths full, as long as its
# volume group has so much free space: lvm2 extends by all of that or not at all, and by more where a twentieth is
# not enough. The pool has nine tenths of its group at first. A full pool would make the layer that runs read-only.
activation {
	thin_pool_autoextend_threshold = 80
	thin_pool_autoextend_percent = 5
}
