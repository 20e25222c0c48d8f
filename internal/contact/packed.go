package contact

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"

	"github.com/klauspost/compress/zstd"
)

// What packed uploads begin with.
const (
	gzipMagic = "\x1f\x8b"
	zstdMagic = "\x28\xb5\x2f\xfd"
)

// packingOf names how an upload that begins with head is packed: "gzip", "zstd", or "" for not at all.
func packingOf(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte(gzipMagic)):
		return "gzip"
	case bytes.HasPrefix(head, []byte(zstdMagic)):
		return "zstd"
	}
	return ""
}

// Bounds of what a small upload may unpack to, and of the memory that unpacking takes.
const (
	maxRatio   = 250
	freeRatio  = 64 << 20
	zstdWindow = 8 << 20 // RFC 9659 section 3: what a receiver has to take, and nobody may send more
)

// unpacked is a packed stream that ends where it unpacks to more than anybody's contacts would.
type unpacked struct {
	z       io.Reader
	packing string
	from    *counted
	n       int64
}

type counted struct {
	r   io.Reader
	n   int64
	err error // that ended the reading, nil for the end
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

func unpack(r io.Reader, packing string) (*bufio.Reader, error) {
	u := &unpacked{packing: packing, from: &counted{r: r}}
	var err error
	if packing == "zstd" {
		// With a concurrency of one it has no goroutine of its own that would have to be ended.
		u.z, err = zstd.NewReader(u.from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
	} else {
		u.z, err = gzip.NewReader(u.from)
	}
	if u.from.err != nil {
		return nil, readError(u.from.err)
	}
	if err != nil {
		return nil, errEncoding("the upload begins like %s and is not: %v", packing, err)
	}
	return bufio.NewReaderSize(u, 64<<10), nil
}

func (u *unpacked) Read(p []byte) (int, error) {
	n, err := u.z.Read(p)
	u.n += int64(n)
	switch {
	case u.n > freeRatio && u.n/maxRatio > u.from.n:
		return 0, errEncoding("the upload unpacks to more than %d times its size", maxRatio)
	case err == nil, errors.Is(err, io.EOF):
	case u.from.err != nil: // not what it says is wrong, but that it does not come
		return n, u.from.err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return n, errEncoding("the upload ends in the middle of its %s stream", u.packing)
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return n, errEncoding("the upload needs a zstd window of more than %d MiB: pack it at level 19 or less, without --long", zstdWindow>>20)
	default: // a wrong checksum, a second stream that is none, or bits that mean nothing
		return n, errEncoding("the upload is damaged: %v", err)
	}
	return n, err
}
