# lvm.conf(5), "Profile configuration": goes with the thin pools that imgbased-helper makes. dmeventd(8)
# extends such a pool, its data or its metadata, by a fifth when it is four fifths full, as long as its
# volume group has free space. A full pool would make the layer that runs read-only.
activation {
	thin_pool_autoextend_threshold = 80
	thin_pool_autoextend_percent = 20
}
