package testutil

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNoServer is returned where the database server is not installed.
var ErrNoServer = errors.New("the database server is not installed")

// Database is a real database server that runs in a temporary directory under an unprivileged user, reachable over a
// Unix socket alone. Nothing of it is durable.
type Database struct {
	Driver string // of relayd's sources: "mysql" or "postgres"
	dir    string
	cmd    *exec.Cmd
	done   chan struct{}
}

const databaseStart = 6 * time.Minute // on a machine that is busy with other tests

// StartMariaDB starts a server of its own.
func StartMariaDB() (*Database, error) {
	daemon, err := program("mariadbd", "/usr/sbin/mariadbd")
	if err != nil {
		return nil, err
	}
	install, err := program("mariadb-install-db")
	if err != nil {
		return nil, err
	}
	d := &Database{Driver: "mysql"}
	return d, d.launch(install,
		[]string{"--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db", "--datadir=DIR/data"},
		daemon, []string{
			"--no-defaults", "--datadir=DIR/data", "--socket=DIR/s", "--skip-networking", "--pid-file=DIR/pid",
			"--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--skip-log-bin",
			"--performance-schema=OFF", "--max-connections=300", "--character-set-server=utf8mb4", "--lc-messages-dir=/usr/share/mysql",
		})
}

// StartPostgres starts a server of its own.
func StartPostgres() (*Database, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	slices.Sort(found)
	if len(found) == 0 {
		return nil, ErrNoServer
	}
	daemon := found[len(found)-1]
	d := &Database{Driver: "postgres"}
	return d, d.launch(filepath.Join(filepath.Dir(daemon), "initdb"),
		[]string{"-D", "DIR/data", "-A", "trust", "-U", "root", "-E", "UTF8", "--locale=C", "--no-sync"},
		daemon, []string{
			"-D", "DIR/data", "-k", "DIR", "-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off",
			"-c", "max_connections=300", "-c", "shared_buffers=16MB", "-c", "autovacuum=off",
		})
}

func program(names ...string) (string, error) {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoServer
}

// launch makes the data directory, starts the daemon and waits until it answers. DIR in arguments is the directory.
func (d *Database) launch(install string, installArgs []string, daemon string, args []string) (err error) {
	if d.dir, err = os.MkdirTemp("", "relayd-db-"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			d.Stop()
		}
	}()
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 { // both refuse to run as root
		u, err := user.Lookup("nobody")
		if err != nil {
			return err
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(d.dir, uid, gid); err != nil {
			return err
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)} //nolint:gosec // small numbers
	}
	command := func(ctx context.Context, name string, args []string) *exec.Cmd {
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "DIR", d.dir)
		}
		c := exec.CommandContext(ctx, name, args...)
		c.Dir, c.SysProcAttr = d.dir, attr
		c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + d.dir, "TMPDIR=" + d.dir, "LC_ALL=C", "TZ=UTC"}
		return c
	}
	ctx, cancel := context.WithTimeout(context.Background(), databaseStart)
	defer cancel()
	if out, err := command(ctx, install, installArgs).CombinedOutput(); err != nil {
		return fmt.Errorf("make database: %w: %s", err, out)
	}
	log, err := os.Create(filepath.Join(d.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd, d.done = command(context.Background(), daemon, args), make(chan struct{})
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return err
	}
	go func() { _ = d.cmd.Wait(); close(d.done) }()
	return d.answers(ctx)
}

// answers waits for the daemon, whose readiness cannot be heard of otherwise than by asking.
func (d *Database) answers(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		db, err := d.Open("")
		if err == nil {
			err = db.PingContext(ctx)
			_ = db.Close()
		}
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-d.done:
			text, _ := os.ReadFile(filepath.Join(d.dir, "log"))
			return fmt.Errorf("the database ended: %s", text)
		case <-ctx.Done():
			text, _ := os.ReadFile(filepath.Join(d.dir, "log"))
			return fmt.Errorf("the database does not answer: %w: %s", err, text)
		}
	}
}

// DSN names a database of the server for a user without a password; "" is its own database.
func (d *Database) DSN(user, name string) string {
	if d.Driver == "mysql" {
		if name == "" {
			name = "mysql"
		}
		return fmt.Sprintf("%s@unix(%s)/%s", user, filepath.Join(d.dir, "s"), name)
	}
	if name == "" {
		name = "postgres"
	}
	return fmt.Sprintf("host=%s user=%s dbname=%s sslmode=disable", d.dir, user, name)
}

// Open connects as the superuser. The caller must have imported the driver, under the name "mysql" or "pgx".
func (d *Database) Open(name string) (*sql.DB, error) {
	driver := "pgx"
	if d.Driver == "mysql" {
		driver = "mysql"
	}
	return sql.Open(driver, d.DSN("root", name))
}

// Create makes a database and opens it as the superuser.
func (d *Database) Create(ctx context.Context, name string) (*sql.DB, error) {
	root, err := d.Open("")
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	if _, err := root.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		return nil, err
	}
	return d.Open(name)
}

// Stop ends the server and removes its directory.
func (d *Database) Stop() {
	if d.cmd != nil && d.cmd.Process != nil {
		if d.Driver == "postgres" { // at once, but with its children and its shared memory
			_ = d.cmd.Process.Signal(syscall.SIGQUIT)
			select {
			case <-d.done:
			case <-time.After(20 * time.Second):
			}
		}
		_ = d.cmd.Process.Kill()
		<-d.done
	}
	if d.dir != "" {
		_ = os.RemoveAll(d.dir)
	}
}
