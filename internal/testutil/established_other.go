//go:build !linux

package testutil

import "net"

// established cannot tell here, and takes each connection for open on both sides.
func established(net.Conn) bool { return true }
