package app

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"relayd/internal/kv"
	"relayd/spool"
)

// A backup is a tar file of the data directory: the store as one snapshot, then every key file (DKIM, unsubscribe links,
// return paths), then the manifest, which only a complete backup has. It holds private keys: mode 0600.

// manifestFile is the last entry of a backup.
const manifestFile = "backup.json"

// Bounds of the files beside the store.
const (
	maxKeyFile  = 1 << 20
	maxKeyFiles = 100_000
)

// manifest says what a backup holds.
type manifest struct {
	Format   int               `json:"format"`
	Version  string            `json:"version"` // of relayd
	Hostname string            `json:"hostname"`
	At       time.Time         `json:"at"`
	SHA256   map[string]string `json:"sha256"` // by name of the file
}

// StorePath is the file of the spool in a data directory.
func StorePath(dataDir string) string { return filepath.Join(dataDir, spoolFile) }

// backup streams a backup of the running daemon.
func (a *App) backup(ctx context.Context, w io.Writer) error {
	out := tar.NewWriter(w)
	m := manifest{Format: 1, Version: Version, Hostname: a.cfg.Hostname, At: time.Now().UTC(), SHA256: map[string]string{}}
	hash := sha256.New()
	err := a.db.Backup(ctx, func(size int64) (io.Writer, error) {
		err := out.WriteHeader(&tar.Header{Name: spoolFile, Mode: 0o600, Size: size, ModTime: m.At})
		return io.MultiWriter(out, hash), err
	})
	if err != nil {
		return err
	}
	m.SHA256[spoolFile] = hex.EncodeToString(hash.Sum(nil))
	// Keys are written before the store refers to them: those of the snapshot are there.
	if err := addKeyFiles(out, a.cfg.DataDir, &m); err != nil {
		return fmt.Errorf("back up key files: %w", err)
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := writeEntry(out, manifestFile, b, m.At); err != nil {
		return err
	}
	return out.Close()
}

func writeEntry(out *tar.Writer, name string, b []byte, at time.Time) error {
	if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(b)), ModTime: at}); err != nil {
		return err
	}
	_, err := out.Write(b)
	return err
}

// addKeyFiles adds the regular files of the data directory beside the store; hidden ones are temporary.
func addKeyFiles(out *tar.Writer, dir string, m *manifest) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone meanwhile
			return nil
		case err != nil:
			return err
		case path != dir && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case !d.Type().IsRegular() || slices.Contains(storeFiles(dir), path):
			return nil
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := os.Open(path) //nolint:gosec // below the data directory
		if err != nil {
			return err
		}
		b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if len(b) > maxKeyFile {
			return nil // nothing of ours
		}
		name = filepath.ToSlash(name)
		sum := sha256.Sum256(b)
		m.SHA256[name] = hex.EncodeToString(sum[:])
		return writeEntry(out, name, b, m.At)
	})
}

// storeFiles are the store of a data directory and its journal.
func storeFiles(dir string) []string {
	journal := kv.JournalNames(StorePath(dir))
	return append(journal[:], StorePath(dir))
}

// Restored says what Restore brought back.
type Restored struct {
	At       time.Time          `json:"at"` // of the backup
	Version  string             `json:"version"`
	KeyFiles int                `json:"key_files"`
	Spool    *spool.CheckReport `json:"spool"`
}

// Restore unpacks the backup in file into dataDir, which must hold neither a store nor any of its key files. Everything
// is unpacked beside its place and checked, the store's pages and accounting too, before anything gets its name; the
// store comes last, so that a restore that is cut short leaves no store.
func Restore(ctx context.Context, file, dataDir string) (*Restored, error) {
	f, err := os.Open(file) //nolint:gosec // the operator's path
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	defer f.Close()
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("restore: make data directory: %w", err)
	}
	for _, name := range storeFiles(dataDir) {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("restore: %s is there already: move it away first", name)
		}
	}
	temp, err := os.MkdirTemp(dataDir, ".restore-*")
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	defer os.RemoveAll(temp) //nolint:errcheck // hidden, and named for what it is
	m, names, err := unpack(ctx, tar.NewReader(bufio.NewReaderSize(f, 1<<20)), temp)
	if err != nil {
		return nil, fmt.Errorf("restore %s: %w", file, err)
	}
	out := &Restored{At: m.At, Version: m.Version, KeyFiles: len(names) - 1}
	if out.Spool, err = CheckStore(ctx, StorePath(temp)); err != nil {
		return nil, fmt.Errorf("restore %s: %w", file, err)
	}
	if out.Spool.Problems > 0 {
		return out, fmt.Errorf("restore %s: the store in it is not sound: %s", file, out.Spool.Findings[0])
	}
	for _, name := range names {
		if _, err := os.Lstat(filepath.Join(dataDir, name)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("restore: %s is there already: move it away first", filepath.Join(dataDir, name))
		}
	}
	for _, name := range names { // the store stands last
		if err := place(temp, dataDir, name); err != nil {
			return nil, fmt.Errorf("restore: %w", err)
		}
	}
	return out, nil
}

// errIncomplete is a backup whose end is missing.
var errIncomplete = errors.New("the backup is not complete: it has no manifest at its end")

// unpack writes the entries of a backup below dir, durably, and compares them with the manifest. It returns the names of
// the files, the store last.
func unpack(ctx context.Context, in *tar.Reader, dir string) (*manifest, []string, error) {
	sums := map[string]string{}
	var names []string
	for {
		h, err := in.Next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, nil, errIncomplete
		case err != nil:
			return nil, nil, err
		case h.Name == manifestFile:
			var m manifest
			if err := json.NewDecoder(io.LimitReader(in, 64<<20)).Decode(&m); err != nil {
				return nil, nil, fmt.Errorf("read manifest: %w", err)
			}
			return &m, append(names, spoolFile), m.compare(sums)
		case !filepath.IsLocal(h.Name) || h.Typeflag != tar.TypeReg || len(names) > maxKeyFiles || sums[h.Name] != "":
			return nil, nil, fmt.Errorf("%q is nothing that a backup holds", h.Name)
		case h.Name != spoolFile && h.Size > maxKeyFile:
			return nil, nil, fmt.Errorf("%q is too large for a key file", h.Name)
		}
		sum, err := unpackFile(ctx, in, filepath.Join(dir, h.Name))
		if err != nil {
			return nil, nil, err
		}
		if sums[h.Name] = sum; h.Name != spoolFile {
			names = append(names, h.Name)
		}
	}
}

// compare tells whether the files are those of the manifest.
func (m *manifest) compare(sums map[string]string) error {
	if m.Format != 1 {
		return fmt.Errorf("the backup has format %d, this program knows 1: use the newer program", m.Format)
	}
	if sums[spoolFile] == "" || len(sums) != len(m.SHA256) {
		return errIncomplete
	}
	for name, sum := range sums {
		if m.SHA256[name] != sum {
			return fmt.Errorf("%s is damaged: its checksum is not that of the manifest", name)
		}
	}
	return nil
}

func unpackFile(ctx context.Context, in io.Reader, path string) (sum string, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // below a directory of ours
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	if _, err = io.Copy(io.MultiWriter(f, hash), contextReader{ctx, in}); err == nil {
		err = f.Sync()
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errIncomplete
	}
	return hex.EncodeToString(hash.Sum(nil)), errors.Join(err, f.Close())
}

// contextReader ends reading with its context.
type contextReader struct {
	ctx context.Context //nolint:containedctx // io.Reader has no room for one
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// place gives an unpacked file its name; it overwrites nothing.
func place(from, to, name string) error {
	target := filepath.Join(to, name)
	if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
		return err
	}
	if err := os.Link(filepath.Join(from, name), target); err != nil {
		return err
	}
	for dir := filepath.Dir(target); ; dir = filepath.Dir(dir) {
		d, err := os.Open(dir) //nolint:gosec // the data directory or below
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
		if dir == to || dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// CheckStore examines the pages and the accounting of the store at path, which no daemon may have open. What is wrong
// is in the report.
func CheckStore(ctx context.Context, path string) (*spool.CheckReport, error) {
	var pages []string
	if err := kv.CheckPages(ctx, path, func(problem string) { pages = append(pages, "page: "+problem) }); err != nil {
		return nil, err
	}
	db, err := kv.OpenReadOnly(path)
	if err != nil {
		return nil, err
	}
	report, err := spool.Check(ctx, db)
	err = errors.Join(err, db.Close())
	report.Findings = append(pages[:min(len(pages), 100)], report.Findings...)
	report.Problems += int64(len(pages))
	return report, err
}
