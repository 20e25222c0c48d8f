package e2e

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// disk is a small ext4 file system on a loop device. Its image lies on a file system that can copy it in one instant,
// while it is written: the copy is what a disk would hold had the power failed then.
type disk struct {
	t     *testing.T
	dir   string // where image and copies are
	image string
	mnt   string
}

// canMount skips a test that mounts file systems, unless everything is asked for.
func canMount(t *testing.T) {
	t.Helper()
	if os.Getenv("RELAYD_E2E") != "full" {
		t.Skip("it mounts file systems; RELAYD_E2E=full runs it, as root")
	}
	needs(t, "mount", "mkfs.ext4", "mkfs.xfs")
	devices, err := filepath.Glob("/dev/loop*")
	require.NoError(t, err)
	require.NotEmpty(t, devices, "there are no loop devices")
	needsRoot(t, "mounting")
}

// newDisk mounts an empty ext4 file system of size bytes. It is removed with the test.
func newDisk(t *testing.T, size int64) *disk {
	t.Helper()
	canMount(t)
	base := t.TempDir()
	host := filepath.Join(base, "host.img")
	require.NoError(t, os.WriteFile(host, nil, 0o600))
	require.NoError(t, os.Truncate(host, max(8*size, 512<<20)))
	run(t, "mkfs.xfs", "-q", "-m", "reflink=1", host)
	d := &disk{t: t, dir: filepath.Join(base, "host")}
	mount(t, host, d.dir)
	d.image = filepath.Join(d.dir, "disk.img")
	require.NoError(t, os.WriteFile(d.image, nil, 0o600))
	require.NoError(t, os.Truncate(d.image, size))
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", d.image)
	d.mnt = filepath.Join(base, "disk")
	mount(t, d.image, d.mnt)
	return d
}

// powerLoss copies the image as it is in this instant, and mounts the copy. drop unmounts and removes it.
func (d *disk) powerLoss() (mnt string, drop func()) {
	d.t.Helper()
	image := filepath.Join(d.dir, "copy.img")
	run(d.t, "cp", "--reflink=always", d.image, image)
	mnt = filepath.Join(filepath.Dir(d.dir), "copy")
	unmount := mount(d.t, image, mnt)
	return mnt, func() {
		unmount()
		require.NoError(d.t, os.Remove(image))
	}
}

// mount mounts an image until the end of the test, or until the function that it returns is called.
func mount(t *testing.T, image, dir string) (unmount func()) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o700))
	run(t, "mount", "-o", "loop", image, dir)
	done := false
	unmount = func() {
		if done {
			return
		}
		done = true
		err := syscall.Unmount(dir, 0)
		for end := time.Now().Add(10 * time.Second); errors.Is(err, syscall.EBUSY) && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond) // whoever was killed may still be on its way out
			err = syscall.Unmount(dir, 0)
		}
		if err != nil {
			t.Errorf("unmount %s: %v", dir, err)
			_ = syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	}
	t.Cleanup(unmount)
	return unmount
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Run(), "%s %s: %s", name, strings.Join(args, " "), out.String())
}
