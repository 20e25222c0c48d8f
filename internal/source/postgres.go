package source

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/stdlib"
)

// postgreSQL is PostgreSQL, and what speaks its protocol.
type postgreSQL struct{}

func (postgreSQL) open(dsn string) (*sql.DB, error) {
	c, err := postgresConfig(dsn)
	if err != nil {
		return nil, err
	}
	db := stdlib.OpenDB(*c)
	db.SetMaxOpenConns(1)
	return db, nil
}

func (postgreSQL) begin(ctx, life context.Context, conn *sql.Conn) (*sql.Tx, moment, error) {
	tx, err := conn.BeginTx(life, &isolated)
	if err != nil {
		return nil, 0, err
	}
	// Everything is set for this transaction alone, so that a pooler in between hands on nothing. The snapshot is taken
	// by the first query: now() is the time of BEGIN, which is before it.
	limits := fmt.Sprintf("SET LOCAL statement_timeout = %d; SET LOCAL lock_timeout = %d", statementTimeout.Milliseconds(), dialTimeout.Milliseconds())
	for _, set := range append(strings.Split(limits, "; "), "SET LOCAL TIME ZONE 'UTC'", "SET LOCAL DateStyle = 'ISO, YMD'",
		"SET LOCAL bytea_output = 'hex'", "SET LOCAL standard_conforming_strings = on") {
		if _, err := tx.ExecContext(ctx, set); err != nil {
			return nil, 0, errors.Join(err, tx.Rollback())
		}
	}
	var text string
	if err := tx.QueryRowContext(ctx, "SELECT now()::text").Scan(&text); err != nil {
		return nil, 0, errors.Join(err, tx.Rollback())
	}
	now, ok := parseMoment(text)
	if !ok {
		return nil, 0, errors.Join(fmt.Errorf("the time %q of the database cannot be read", text), tx.Rollback())
	}
	return tx, now, nil
}

func (postgreSQL) quote(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func (d postgreSQL) text(c *column) string {
	return fmt.Sprintf("left(%s::text, %d)", d.quote(c.name), maxText)
}

func (postgreSQL) param(n int, _ *column) string { return fmt.Sprintf("$%d", n) }

// after compares rows: PostgreSQL uses the composite index for that.
func (d postgreSQL) after(n int, u, k *column, at mark) (string, []any) {
	return fmt.Sprintf("(%s, %s) > (%s, %s)", d.quote(u.name), d.quote(k.name), d.param(n, u), d.param(n+1, k)), []any{at.U.sql(), at.K}
}

func (postgreSQL) earliest() string { return "0001-01-01 00:00:00" }

func (d postgreSQL) inspect(ctx context.Context, tx *sql.Tx, name []string) (*table, error) {
	parts := make([]string, len(name))
	for i, p := range name {
		parts[i] = d.quote(p)
	}
	t := &table{}
	var oid int64
	var relkind string
	err := tx.QueryRowContext(ctx, `SELECT c.oid::bigint, c.relkind::text, n.nspname::text, c.relname::text,
		greatest(c.reltuples, 0)::bigint, current_setting('server_version')
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = to_regclass($1)`, strings.Join(parts, ".")).Scan(&oid, &relkind, &t.schema, &t.name, &t.rows, &t.server)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errNoTable
	}
	if err != nil {
		return nil, err
	}
	if !strings.Contains("rpvmf", relkind) {
		return nil, errNoTable
	}
	t.server = "PostgreSQL " + t.server
	t.view = relkind == "v" || relkind == "f"
	t.quoted = d.quote(t.schema) + "." + d.quote(t.name)
	if err := d.columns(ctx, tx, t, oid); err != nil {
		return nil, err
	}
	rows, err := tx.QueryContext(ctx, `SELECT i.relname::text, x.indisunique,
		array_to_string(ARRAY(SELECT a.attname FROM unnest(x.indkey) WITH ORDINALITY AS k(num, pos)
			JOIN pg_catalog.pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.num
			WHERE k.pos <= x.indnkeyatts ORDER BY k.pos), chr(1))
		FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid JOIN pg_catalog.pg_am m ON m.oid = i.relam
		WHERE x.indrelid = $1::bigint::oid AND x.indisvalid AND x.indpred IS NULL AND x.indexprs IS NULL AND m.amname = 'btree'
		ORDER BY 1`, oid)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var ix index
		var columns string
		if err := rows.Scan(&ix.name, &ix.unique, &columns); err != nil {
			return nil, err
		}
		ix.columns = strings.Split(columns, "\x01")
		t.indexes = append(t.indexes, ix)
	}
	return t, rows.Err()
}

func (postgreSQL) columns(ctx context.Context, tx *sql.Tx, t *table, oid int64) error {
	rows, err := tx.QueryContext(ctx, `SELECT a.attname::text, a.atttypmod, a.attnotnull, b.typname::text, b.typtype::text,
		format_type(a.atttypid, a.atttypmod)
		FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
		JOIN pg_catalog.pg_type b ON b.oid = CASE WHEN y.typbasetype <> 0 THEN y.typbasetype ELSE y.oid END
		WHERE a.attrelid = $1::bigint::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, oid)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var c column
		var typmod int
		var notNull bool
		var base, class string
		if err := rows.Scan(&c.name, &typmod, &notNull, &base, &class, &c.typ); err != nil {
			return err
		}
		c.nullable, c.decimals = !notNull, 6
		switch base {
		case "int2", "int4", "int8":
			c.kind = kindInteger
		case "numeric", "float4", "float8":
			c.kind = kindNumber
		case "bool":
			c.kind = kindBool
		case "timestamptz", "timestamp":
			c.kind, c.zoned = kindTime, base == "timestamptz"
			if typmod >= 0 {
				c.decimals = typmod
			}
		case "date":
			c.kind = kindDate
		case "bytea":
			c.kind = kindBytes
		}
		t.columns = append(t.columns, c)
	}
	return rows.Err()
}

func (postgreSQL) writable(ctx context.Context, tx *sql.Tx, t *table) (bool, error) {
	var can bool
	err := tx.QueryRowContext(ctx, `SELECT has_table_privilege($1::text, 'INSERT') OR has_table_privilege($1::text, 'UPDATE')
		OR has_table_privilege($1::text, 'DELETE')`, t.quoted).Scan(&can)
	return can, err
}
