package source

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
)

// maxDSN is the length of a DSN in bytes.
const maxDSN = 4 << 10

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// checkRef says what is wrong with a reference to a DSN, "" for nothing. It never repeats what it was given: that may be
// a DSN, with its password.
func checkRef(ref string) string {
	kind, rest, _ := strings.Cut(ref, ":")
	switch {
	case kind == "env" && envName.MatchString(rest):
		return ""
	case kind == "file" && strings.HasPrefix(rest, "/") && len(rest) < 1024 && !strings.ContainsFunc(rest, isControl):
		return ""
	}
	return "This is not env:NAME or file:/PATH. The DSN itself is never stored: put it into an environment variable or a file of relayd."
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// readRef returns the DSN that a reference names. Its errors hold nothing of the content.
func readRef(ref string, env func(string) string) (string, error) {
	kind, rest, _ := strings.Cut(ref, ":")
	text := ""
	switch kind {
	case "env":
		text = env(rest)
		if text == "" {
			return "", fmt.Errorf("%w: the environment variable %s of relayd is not set", errDSN, rest)
		}
	case "file":
		f, err := os.Open(rest)
		if err != nil {
			return "", fmt.Errorf("%w: %w", errDSN, err)
		}
		defer f.Close()
		if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
			return "", fmt.Errorf("%w: %s is not a file", errDSN, rest)
		}
		b, err := io.ReadAll(io.LimitReader(f, maxDSN+1))
		if err != nil {
			return "", fmt.Errorf("%w: %w", errDSN, err)
		}
		text = string(b)
	default:
		return "", fmt.Errorf("%w: not env:NAME or file:PATH", errDSN)
	}
	text = strings.TrimSpace(text)
	if text == "" || len(text) > maxDSN || strings.ContainsFunc(text, isControl) {
		return "", fmt.Errorf("%w: %s is empty, longer than %d bytes or of more than one line", errDSN, ref, maxDSN)
	}
	return text, nil
}

var errDSN = errors.New("no DSN")

// mysqlConfig reads user:password@tcp(host:port)/database, or mysql://user:password@host:port/database.
func mysqlConfig(dsn string) (*mysql.Config, error) {
	bad := fmt.Errorf("%w: it is not like user:password@tcp(host:3306)/database or mysql://user:password@host:3306/database", errDSN)
	if u, err := url.Parse(dsn); err == nil && (u.Scheme == "mysql" || u.Scheme == "mariadb") {
		host := u.Host
		if u.Port() == "" {
			host += ":3306"
		}
		password, _ := u.User.Password()
		dsn = u.User.Username() + ":" + password + "@tcp(" + host + ")" + u.EscapedPath()
		if u.RawQuery != "" {
			dsn += "?" + u.RawQuery
		}
	}
	c, err := mysql.ParseDSN(dsn)
	if err != nil || c.DBName == "" {
		return nil, bad // not err: it may repeat the password
	}
	// What could make the server run more than we say, or read files of ours, is off whatever the DSN says.
	c.MultiStatements, c.AllowAllFiles, c.InterpolateParams, c.ParseTime = false, false, false, false
	c.ClientFoundRows = false
	c.Timeout, c.ReadTimeout, c.WriteTimeout = dialTimeout, statementTimeout+dialTimeout, dialTimeout
	c.Logger = &mysql.NopLogger{}
	return c, nil
}

// postgresConfig reads a URL or keyword=value pairs.
func postgresConfig(dsn string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("%w: it is not like postgres://user:password@host:5432/database", errDSN)
	}
	if c.ConnectTimeout == 0 || c.ConnectTimeout > dialTimeout {
		c.ConnectTimeout = dialTimeout
	}
	return c, nil
}
