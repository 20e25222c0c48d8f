package app

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"

	"relayd/internal/kv"
)

// A store belongs to one instance of relayd: a machine, or what the configuration names. A copy of the data directory that
// is started elsewhere, beside the one that it was copied from, would send again what that one has sent, and what it has
// scheduled. So relayd refuses a store of another instance, until a person has said that the other one is gone.

// tableInstance has one row: the mark of the instance that the store belongs to.
const tableInstance = kv.Table("instance")

// instanceVersion is the first byte of the row.
const instanceVersion = 1

// ErrOtherInstance is returned for a store that belongs to another instance.
var ErrOtherInstance = errors.New("the store belongs to another instance")

// Adopt takes a store over that belonged to another instance.
func Adopt() Option { return func(a *App) { a.adopt = true } }

// Option changes what New does.
type Option func(*App)

// machineFiles hold the machine's ID (machine-id(5)), the first that is there.
var machineFiles = [...]string{"/etc/machine-id", "/var/lib/dbus/machine-id"} //nolint:gochecknoglobals // a constant list

// instanceMark is what the store keeps of an instance: a hash, for the ID of a machine is not to be shown. Where neither the
// configuration names one nor the machine has an ID, as in most containers, all are the same.
func instanceMark(named string) string {
	id := "name:" + named
	if named == "" {
		id = "machine:"
		for _, file := range machineFiles {
			if b, err := os.ReadFile(file); err == nil {
				id += strings.TrimSpace(string(b))
				break
			}
		}
	}
	h := hmac.New(sha256.New, []byte("relayd instance"))
	h.Write([]byte(id))
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// claimStore makes the store that of this instance, or refuses: ErrOtherInstance.
func (a *App) claimStore(ctx context.Context) error {
	mark, was := instanceMark(a.cfg.Instance), ""
	err := a.db.Update(ctx, func(tx kv.Tx) error {
		was = ""
		v, err := tx.Get(tableInstance, []byte("owner"))
		if err != nil {
			return err
		}
		if len(v) > 0 {
			if v[0] != instanceVersion {
				return fmt.Errorf("unknown version %d", v[0])
			}
			was = string(v[1:])
		}
		switch {
		case was == mark:
			return nil
		case was != "" && !a.adopt:
			return ErrOtherInstance
		}
		return tx.Put(tableInstance, []byte("owner"), append([]byte{instanceVersion}, mark...))
	})
	switch {
	case errors.Is(err, ErrOtherInstance):
		return fmt.Errorf("%s was used by relayd on another machine, or under another name (instance): %w. "+
			"Make sure that the other relayd is off for good, or mail is sent twice; then start once with relayd run --adopt",
			a.cfg.DataDir, err)
	case err != nil:
		return fmt.Errorf("claim store: %w", err)
	case was != "" && was != mark:
		a.log.Warn("store.adopted")
	}
	return nil
}
