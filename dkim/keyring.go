package dkim

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"relayd/internal/mail"
)

// Errors of a Keyring.
var (
	// ErrNoKey: there is no such key, or none to sign with.
	ErrNoKey = errors.New("no DKIM key")
	// ErrExists: there is a key of that domain and selector.
	ErrExists = errors.New("DKIM key exists")
	// ErrExposed: a key file can be read by others than its owner.
	ErrExposed = errors.New("others than the owner may read the file")
	// ErrConfigured: the configuration names the domain's keys, so that they are changed there.
	ErrConfigured = errors.New("the configuration names the keys of this domain")
)

// Keyring holds the keys of all domains: private keys in files <domain>.<selector>.pem of mode 0600, and what state they
// are in in the file keys.json beside them. A change is durable when its method returns. One process may have a
// directory open. It is safe for concurrent use; Keys takes no lock.
type Keyring struct {
	dir string
	now func() time.Time

	mu     sync.Mutex
	stored map[string][]*Key // by domain, oldest first
	loaded map[string][]*Key // those that the configuration names

	active atomic.Pointer[map[string][]*Key]
}

// Open reads the keys in dir, which is made when it does not exist. A key that signs and cannot be read is an error:
// mail is never sent unsigned because a file is gone.
func Open(dir string) (*Keyring, error) { return OpenAt(dir, time.Now) }

// OpenAt is Open with a clock.
func OpenAt(dir string, now func() time.Time) (*Keyring, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	k := &Keyring{dir: dir, now: now, loaded: map[string][]*Key{}}
	var err error
	if k.stored, err = readState(dir); err != nil {
		return nil, err
	}
	k.publish()
	return k, nil
}

// Keys returns the keys that sign for a domain now, RSA first; the domain is in canonical form (mail.ParseDomain). The
// slice is shared: do not change it. None means that mail of this domain must not be sent, unless the operator wants it
// unsigned. Keys that the configuration names come in place of the stored ones.
func (k *Keyring) Keys(domain string) []*Key { return (*k.active.Load())[domain] }

// AllKeys returns the keys of a domain in all states, oldest first.
func (k *Keyring) AllKeys(domain string) []*Key {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Concat(k.loaded[domain], k.stored[domain])
}

// Domains returns the domains that have a key in any state, sorted.
func (k *Keyring) Domains() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := maps.Clone(k.stored)
	maps.Copy(all, k.loaded)
	return slices.Sorted(maps.Keys(all))
}

// Generate makes a pending key. ErrExists when the selector is in use.
func (k *Keyring) Generate(domain, selector string, alg Algorithm) (*Key, error) {
	domain, selector, err := parseNames(domain, selector)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	key, err := k.add(domain, selector, alg, Pending)
	if err != nil {
		return nil, err
	}
	if err := k.save(); err != nil {
		return nil, err
	}
	return key, nil
}

// AddDomain makes an active key of each algorithm that has none, with the selectors r<year><n> for RSA and e<year><n> for
// Ed25519, and returns the domain's active keys. It may be repeated.
func (k *Keyring) AddDomain(domain string) ([]*Key, error) {
	return k.addEach(domain, Active, func(d string, alg Algorithm) bool {
		return !slices.ContainsFunc(k.stored[d], func(o *Key) bool { return o.State == Active && o.replaces(alg) })
	})
}

// Rotate makes a pending key of each algorithm, or takes those that are pending already, and returns them. Publish their
// records, then Activate them.
func (k *Keyring) Rotate(domain string) ([]*Key, error) {
	d, err := mail.ParseDomain(domain, false)
	if err != nil {
		return nil, err
	}
	if len(k.AllKeys(d)) == 0 {
		return nil, fmt.Errorf("%w of %s", ErrNoKey, d)
	}
	return k.addEach(domain, Pending, func(d string, alg Algorithm) bool {
		return !slices.ContainsFunc(k.stored[d], func(o *Key) bool { return o.State == Pending && o.replaces(alg) })
	})
}

// addEach makes a key of each algorithm for which needed says so and returns the domain's keys in that state.
func (k *Keyring) addEach(domain string, state State, needed func(d string, alg Algorithm) bool) ([]*Key, error) {
	d, err := mail.ParseDomain(domain, false)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.loaded[d]) > 0 {
		if state == Active {
			return slices.Clone(k.loaded[d]), nil
		}
		return nil, fmt.Errorf("rotate DKIM keys of %s: %w", d, ErrConfigured)
	}
	for _, alg := range []Algorithm{RSA2048, Ed25519} {
		if !needed(d, alg) {
			continue
		}
		if _, err := k.add(d, k.freeSelector(d, alg), alg, state); err != nil {
			return nil, err
		}
	}
	if err := k.save(); err != nil {
		return nil, err
	}
	return inState(k.stored[d], state), nil
}

// freeSelector returns the first unused r<year><n> or e<year><n>. A file counts as used: it may be older than keys.json.
func (k *Keyring) freeSelector(domain string, alg Algorithm) string {
	prefix := string(alg[0]) + strconv.Itoa(k.now().UTC().Year())
	for n := 1; ; n++ {
		s := prefix + strconv.Itoa(n)
		_, err := os.Lstat(k.path(domain, s))
		if k.find(domain, s) < 0 && errors.Is(err, os.ErrNotExist) {
			return s
		}
	}
}

// add makes a key and its file. The caller saves the state: a file without state is only a selector that is taken.
func (k *Keyring) add(domain, selector string, alg Algorithm, state State) (*Key, error) {
	if k.find(domain, selector) >= 0 {
		return nil, fmt.Errorf("%w: %s of %s", ErrExists, selector, domain)
	}
	key, err := generate(domain, selector, alg)
	if err != nil {
		return nil, err
	}
	now := k.now().UTC().Truncate(time.Second)
	key = key.in(state, now)
	key.CreatedAt = now
	b, err := key.encodePEM()
	if err != nil {
		return nil, err
	}
	if err := createFile(k.path(domain, selector), b); err != nil {
		return nil, err
	}
	k.stored[domain] = append(k.stored[domain], key)
	return key, nil
}

// Activate lets a key sign and retires the domain's other active keys of its kind. ErrNoKey when there is none. Do it
// when the record is published: see mailauth.Verify.
func (k *Keyring) Activate(domain, selector string) error {
	return k.change(domain, selector, func(keys []*Key, i int) {
		now := k.now().UTC().Truncate(time.Second)
		for j, o := range keys {
			if j != i && o.State == Active && o.replaces(keys[i].Algorithm) {
				keys[j] = o.in(Retired, now)
			}
		}
		if keys[i].State != Active {
			keys[i] = keys[i].in(Active, now)
		}
	})
}

// Retire ends signing with a key. Its record should stay published for a week, for the mail that is still under way
// (RFC 6376 section 3.6.1). A domain may be left without an active key; its mail is then refused at the door.
func (k *Keyring) Retire(domain, selector string) error {
	return k.change(domain, selector, func(keys []*Key, i int) {
		if keys[i].State != Retired {
			keys[i] = keys[i].in(Retired, k.now().UTC().Truncate(time.Second))
		}
	})
}

func (k *Keyring) change(domain, selector string, fn func(keys []*Key, i int)) error {
	domain, selector, err := parseNames(domain, selector)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.loaded[domain]) > 0 {
		return fmt.Errorf("change DKIM key %s of %s: %w", selector, domain, ErrConfigured)
	}
	i := k.find(domain, selector)
	if i < 0 {
		return fmt.Errorf("%w: %s of %s", ErrNoKey, selector, domain)
	}
	before := k.stored[domain]
	k.stored[domain] = slices.Clone(before)
	fn(k.stored[domain], i)
	if err := k.save(); err != nil {
		k.stored[domain] = before
		return err
	}
	return nil
}

// LoadFile reads a key that the configuration names (see ReadFile). It signs at once, in place of the domain's stored
// keys; no state is kept of it.
func (k *Keyring) LoadFile(domain, selector, path string) (*Key, error) {
	key, err := ReadFile(domain, selector, path)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(k.loaded[key.Domain]), func(o *Key) bool { return o.Selector == key.Selector })
	k.loaded[key.Domain] = append(others, key)
	k.publish()
	return key, nil
}

// SetLoaded replaces all keys that the configuration names, for a reload: read them with ReadFile first, so that a wrong
// file changes nothing.
func (k *Keyring) SetLoaded(keys []*Key) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.loaded = map[string][]*Key{}
	for _, key := range keys {
		k.loaded[key.Domain] = append(k.loaded[key.Domain], key)
	}
	k.publish()
}

func (k *Keyring) find(domain, selector string) int {
	return slices.IndexFunc(k.stored[domain], func(o *Key) bool { return o.Selector == selector })
}

// save makes the state durable, then visible.
func (k *Keyring) save() error {
	if err := writeState(k.dir, k.stored); err != nil {
		return err
	}
	k.publish()
	return nil
}

// publish makes the state visible to Keys.
func (k *Keyring) publish() {
	active := make(map[string][]*Key, len(k.stored)+len(k.loaded))
	for d, keys := range k.stored {
		active[d] = inState(keys, Active)
	}
	for d, keys := range k.loaded {
		active[d] = inState(keys, Active)
	}
	k.active.Store(&active)
}

func (k *Keyring) path(domain, selector string) string {
	return filepath.Join(k.dir, domain+"."+selector+".pem")
}

// inState returns the keys in that state, RSA before Ed25519: some receivers look at the first signature only.
func inState(keys []*Key, s State) []*Key {
	var in []*Key
	for _, key := range keys {
		if key.State == s {
			in = append(in, key)
		}
	}
	slices.SortStableFunc(in, func(a, b *Key) int { return rank(a.Algorithm) - rank(b.Algorithm) })
	return in
}

func rank(a Algorithm) int {
	if a == Ed25519 {
		return 1
	}
	return 0
}

// replaces tells whether keys of that algorithm make the same kind of signature.
func (k *Key) replaces(a Algorithm) bool {
	return strings.HasPrefix(string(k.Algorithm), "rsa") == strings.HasPrefix(string(a), "rsa")
}
