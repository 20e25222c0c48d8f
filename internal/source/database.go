package source

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"relayd/internal/mail"
)

// Deadlines towards a database.
const (
	dialTimeout      = 10 * time.Second
	statementTimeout = 60 * time.Second
)

// maxText is how many characters of a value are read: one more than any attribute may have, so that a longer one is
// told, not cut.
const maxText = 64<<10 + 1

// dialect is what differs between the databases.
type dialect interface {
	// open makes the pool of one connection. It does not dial.
	open(dsn string) (*sql.DB, error)
	// begin starts a read-only transaction over one snapshot in a session set to UTC, and returns its time, which is not
	// later than the snapshot.
	// ctx bounds the beginning, life the transaction.
	begin(ctx, life context.Context, conn *sql.Conn) (tx *sql.Tx, now moment, err error)
	// inspect finds a table with its columns and indexes.
	inspect(ctx context.Context, tx *sql.Tx, name []string) (*table, error)
	quote(identifier string) string
	// text is the expression that gives a column as text of at most maxText characters.
	text(c *column) string
	// param is the n-th parameter, from 1, to be compared with a column.
	param(n int, c *column) string
	// after is the condition that a row stands behind (u, k), with its parameters from number n on.
	after(n int, u, k *column, at mark) (condition string, args []any)
	// writable tells whether the user could change the table.
	writable(ctx context.Context, tx *sql.Tx, t *table) (bool, error)
	earliest() string
}

func dialectOf(driver string) dialect {
	if driver == "mysql" {
		return mySQL{}
	}
	return postgreSQL{}
}

// kind is what a column's values become.
type kind uint8

const (
	kindText kind = iota
	kindInteger
	kindNumber
	kindBool
	kindTime
	kindDate
	kindBytes // only as a key
)

// column of a table.
type column struct {
	name     string // as the database spells it
	typ      string // as the database names it
	kind     kind
	unsigned bool
	bits     bool // MySQL’s BIT, which is no number by itself
	zoned    bool // a time with a zone
	decimals int  // of seconds
	nullable bool
	touched  bool // set by the database on every change
}

// index of a table, usable for ranges.
type index struct {
	name    string
	columns []string
	unique  bool
}

// table is what the database knows about one.
type table struct {
	quoted  string
	schema  string
	name    string
	view    bool
	rows    int64 // about
	server  string
	columns []column
	indexes []index
	// clustered: an index holds the primary key behind its own columns.
	clustered bool
	primary   []string
	folds     bool // names of columns are the same in upper and lower case
}

// column finds one by its name.
func (t *table) column(name string) *column {
	for i := range t.columns {
		c := &t.columns[i]
		if c.name == name || t.folds && strings.EqualFold(c.name, name) {
			return c
		}
	}
	return nil
}

// orders returns the index that gives rows in the order of (u, k), "" for none.
func (t *table) orders(u, k *column) string {
	for _, ix := range t.indexes {
		cols := ix.columns
		if t.clustered && !ix.unique {
			cols = append(slices.Clip(cols), t.primary...)
		}
		if len(cols) >= 2 && cols[0] == u.name && cols[1] == k.name {
			return ix.name
		}
	}
	return ""
}

// unique tells whether no two rows have the same key.
func (t *table) unique(k *column) bool {
	for _, ix := range t.indexes {
		if ix.unique && len(ix.columns) == 1 && ix.columns[0] == k.name {
			return true
		}
	}
	return false
}

// checkName says what is wrong with an identifier, "" for nothing. Whatever passes here is still quoted.
func checkName(s string) string {
	switch {
	case s == "":
		return "A name is missing."
	case len(s) > 63:
		return "A name has at most 63 bytes."
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool {
		return r != '_' && r != '$' && r != '-' && r != ' ' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}) || strings.TrimSpace(s) != s:
		return "A name holds letters, digits, blanks, _, $ and - only."
	}
	return ""
}

// session is one connection with one snapshot.
type session struct {
	d    dialect
	db   *sql.DB
	conn *sql.Conn
	tx   *sql.Tx
	now  moment // of the database, true time
	hide string // password, never to be told
	end  context.CancelFunc
}

// openSession connects and begins. Its errors are cleaned of the password.
func openSession(ctx context.Context, driver, dsn string) (*session, error) {
	s := &session{d: dialectOf(driver), hide: passwordOf(driver, dsn)}
	var err error
	if s.db, err = s.d.open(dsn); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	if s.conn, err = s.db.Conn(ctx); err != nil {
		_ = s.db.Close()
		return nil, fmt.Errorf("connect to database: %w", s.clean(err))
	}
	// The context of BEGIN is the transaction's whole life, which the deadline must end only while it begins.
	var life context.Context
	life, s.end = context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, s.end)
	s.tx, s.now, err = s.d.begin(ctx, life, s.conn)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("begin read-only transaction: %w", s.clean(err))
	}
	return s, nil
}

func (s *session) close() {
	if s.tx != nil {
		_ = s.tx.Rollback()
	}
	if s.end != nil {
		s.end()
	}
	if s.conn != nil {
		_ = s.conn.Close()
	}
	_ = s.db.Close()
}

func passwordOf(driver, dsn string) string {
	if driver == "mysql" {
		if c, err := mysqlConfig(dsn); err == nil {
			return c.Passwd
		}
		return ""
	}
	if c, err := postgresConfig(dsn); err == nil {
		return c.Password
	}
	return ""
}

// databaseError is an error of the database, with a text that may be shown.
type databaseError struct {
	text string
	err  error
}

func (e *databaseError) Error() string { return e.text }
func (e *databaseError) Unwrap() error { return e.err }

// clean makes the text of an error of the database fit to be shown: no password, one line, bounded.
func (s *session) clean(err error) error {
	if err == nil || errors.Is(err, errDSN) {
		return err
	}
	text := err.Error()
	if s.hide != "" {
		text = strings.ReplaceAll(text, s.hide, "***")
	}
	return &databaseError{mail.CleanText(strings.Join(strings.Fields(text), " "), 500), err}
}

// query runs one statement within the statement's deadline and calls row for each row, until it returns false.
func (s *session) query(ctx context.Context, text string, args []any, width int, row func([]sql.NullString) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout+dialTimeout)
	defer cancel()
	rows, err := s.tx.QueryContext(ctx, text, args...)
	if err != nil {
		return s.clean(err)
	}
	defer func() { _ = rows.Close() }()
	cells, into := make([]sql.NullString, width), make([]any, width)
	for i := range cells {
		into[i] = &cells[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return s.clean(err)
		}
		more, err := row(cells)
		if err != nil || !more {
			return err
		}
	}
	return s.clean(rows.Err())
}

// isolated is the snapshot that all reads of a run share.
var isolated = sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
