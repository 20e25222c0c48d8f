package source

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/go-sql-driver/mysql"
)

// mySQL is MySQL and MariaDB.
type mySQL struct{}

func (mySQL) open(dsn string) (*sql.DB, error) {
	c, err := mysqlConfig(dsn)
	if err != nil {
		return nil, err
	}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, fmt.Errorf("%w: the driver refuses it", errDSN)
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(1)
	return db, nil
}

func (mySQL) begin(ctx, life context.Context, conn *sql.Conn) (*sql.Tx, moment, error) {
	var version string
	if err := conn.QueryRowContext(ctx, "SELECT VERSION()").Scan(&version); err != nil {
		return nil, 0, err
	}
	limit := fmt.Sprintf("SET SESSION max_execution_time = %d", statementTimeout.Milliseconds())
	if strings.Contains(version, "MariaDB") {
		limit = fmt.Sprintf("SET SESSION max_statement_time = %d", int(statementTimeout.Seconds()))
	}
	lock := fmt.Sprintf("SET SESSION lock_wait_timeout = %d", int(dialTimeout.Seconds()))
	for _, set := range []string{"SET SESSION time_zone = '+00:00'", "SET SESSION sql_mode = ''", limit, lock} {
		if _, err := conn.ExecContext(ctx, set); err != nil {
			return nil, 0, err
		}
	}
	// The snapshot is taken by the first read of a table: the time before BEGIN is before it.
	var text string
	if err := conn.QueryRowContext(ctx, "SELECT CAST(NOW(6) AS CHAR)").Scan(&text); err != nil {
		return nil, 0, err
	}
	now, ok := parseMoment(text)
	if !ok {
		return nil, 0, fmt.Errorf("the time %q of the database cannot be read", text)
	}
	tx, err := conn.BeginTx(life, &isolated)
	return tx, now, err
}

func (mySQL) quote(s string) string { return "`" + strings.ReplaceAll(s, "`", "``") + "`" }

func (d mySQL) text(c *column) string {
	switch {
	case c.bits:
		return fmt.Sprintf("CAST(%s+0 AS CHAR)", d.quote(c.name))
	case c.kind == kindBytes:
		return fmt.Sprintf("LEFT(HEX(%s), %d)", d.quote(c.name), maxText)
	case c.kind == kindText:
		return fmt.Sprintf("LEFT(%s, %d)", d.quote(c.name), maxText)
	}
	return fmt.Sprintf("CAST(%s AS CHAR)", d.quote(c.name))
}

func (mySQL) param(_ int, c *column) string {
	switch c.kind {
	case kindTime:
		return "CAST(? AS DATETIME(6))"
	case kindBytes:
		return "UNHEX(?)"
	case kindInteger: // as a text it would be compared as a float
		if c.unsigned {
			return "CAST(? AS UNSIGNED)"
		}
		return "CAST(? AS SIGNED)"
	}
	return "?"
}

// after spells the comparison of rows out, with a range that the index can use in front.
func (d mySQL) after(n int, u, k *column, at mark) (string, []any) {
	un, kn, up, kp := d.quote(u.name), d.quote(k.name), d.param(n, u), d.param(n+1, k)
	return fmt.Sprintf("%s >= %s AND (%s > %s OR %s > %s)", un, up, un, up, kn, kp), []any{at.U.sql(), at.U.sql(), at.K}
}

func (mySQL) earliest() string { return "1000-01-01 00:00:00" }

func (d mySQL) inspect(ctx context.Context, tx *sql.Tx, name []string) (*table, error) {
	t := &table{folds: true}
	var schema any
	if len(name) == 2 {
		schema = name[0]
	}
	var class, engine sql.NullString
	var rows sql.NullInt64
	err := tx.QueryRowContext(ctx, `SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, ENGINE, TABLE_ROWS, VERSION()
		FROM information_schema.TABLES WHERE TABLE_SCHEMA = COALESCE(?, DATABASE()) AND TABLE_NAME = ?`, schema, name[len(name)-1]).
		Scan(&t.schema, &t.name, &class, &engine, &rows, &t.server)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errNoTable
	}
	if err != nil {
		return nil, err
	}
	if !strings.Contains(t.server, "MariaDB") {
		t.server = "MySQL " + t.server
	}
	t.rows = rows.Int64
	t.view = strings.Contains(class.String, "VIEW")
	t.clustered = strings.EqualFold(engine.String, "InnoDB")
	t.quoted = d.quote(t.schema) + "." + d.quote(t.name)
	if err := d.columns(ctx, tx, t); err != nil {
		return nil, err
	}
	return t, d.indexes(ctx, tx, t)
}

func (mySQL) columns(ctx context.Context, tx *sql.Tx, t *table) error {
	rows, err := tx.QueryContext(ctx, `SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, IS_NULLABLE, DATETIME_PRECISION, EXTRA
		FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION`, t.schema, t.name)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var c column
		var data, nullable, extra string
		var decimals sql.NullInt64
		if err := rows.Scan(&c.name, &data, &c.typ, &nullable, &decimals, &extra); err != nil {
			return err
		}
		c.nullable, c.decimals = nullable == "YES", int(decimals.Int64)
		c.unsigned = strings.Contains(c.typ, "unsigned")
		c.touched = strings.Contains(strings.ToLower(extra), "on update")
		switch strings.ToLower(data) {
		case "tinyint", "smallint", "mediumint", "int", "bigint", "year":
			if c.kind = kindInteger; strings.HasPrefix(c.typ, "tinyint(1)") {
				c.kind = kindBool
			}
		case "decimal", "float", "double":
			c.kind = kindNumber
		case "datetime", "timestamp":
			c.kind, c.zoned = kindTime, strings.EqualFold(data, "timestamp")
		case "date":
			c.kind = kindDate
		case "binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "geometry", "point":
			c.kind = kindBytes
		case "bit":
			if c.kind, c.bits = kindInteger, true; c.typ == "bit(1)" {
				c.kind = kindBool
			}
		}
		t.columns = append(t.columns, c)
	}
	return rows.Err()
}

func (mySQL) indexes(ctx context.Context, tx *sql.Tx, t *table) error {
	rows, err := tx.QueryContext(ctx, `SELECT INDEX_NAME, NON_UNIQUE, COLUMN_NAME FROM information_schema.STATISTICS
		WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND INDEX_TYPE = 'BTREE' ORDER BY INDEX_NAME, SEQ_IN_INDEX`, t.schema, t.name)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var name string
		var notUnique int
		var col sql.NullString // NULL for an expression
		if err := rows.Scan(&name, &notUnique, &col); err != nil {
			return err
		}
		if n := len(t.indexes); n == 0 || t.indexes[n-1].name != name {
			t.indexes = append(t.indexes, index{name: name, unique: notUnique == 0})
		}
		ix := &t.indexes[len(t.indexes)-1]
		ix.columns = append(ix.columns, col.String)
		if name == "PRIMARY" {
			t.primary = append(t.primary, col.String)
		}
	}
	return rows.Err()
}

func (mySQL) writable(ctx context.Context, tx *sql.Tx, t *table) (bool, error) {
	var n int
	err := tx.QueryRowContext(ctx, `SELECT
		(SELECT COUNT(*) FROM information_schema.USER_PRIVILEGES WHERE GRANTEE = g.who AND PRIVILEGE_TYPE IN ('INSERT','UPDATE','DELETE')) +
		(SELECT COUNT(*) FROM information_schema.SCHEMA_PRIVILEGES WHERE GRANTEE = g.who AND TABLE_SCHEMA = ? AND PRIVILEGE_TYPE IN ('INSERT','UPDATE','DELETE')) +
		(SELECT COUNT(*) FROM information_schema.TABLE_PRIVILEGES WHERE GRANTEE = g.who AND TABLE_SCHEMA = ? AND TABLE_NAME = ?
			AND PRIVILEGE_TYPE IN ('INSERT','UPDATE','DELETE'))
		FROM (SELECT CONCAT('''', REPLACE(CURRENT_USER(), '@', '''@'''), '''') AS who) g`, t.schema, t.schema, t.name).Scan(&n)
	return n > 0, err
}
