package campaign

import (
	"fmt"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // hosts without a zone database have recipients with time zones all the same
)

// zones finds time zones by name. Names come from contacts: only those that exist are kept.
type zones struct {
	mu    sync.Mutex
	known map[string]*time.Location
}

// maxZone bounds a name; the longest of the database has 32 characters.
const maxZone = 40

// find returns the zone of a name such as "Asia/Seoul", or of an offset such as "+09:00".
func (z *zones) find(name string) (*time.Location, error) {
	name = strings.TrimSpace(name)
	if name == "" || len(name) > maxZone || strings.EqualFold(name, "local") {
		return nil, fmt.Errorf("%q is not a time zone such as Asia/Seoul", clip(name, maxZone))
	}
	z.mu.Lock()
	loc := z.known[name]
	z.mu.Unlock()
	if loc != nil {
		return loc, nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		t, bad := time.Parse("-07:00", name)
		if bad != nil {
			return nil, fmt.Errorf("%q is not a time zone such as Asia/Seoul", name)
		}
		_, offset := t.Zone()
		loc = time.FixedZone(name, offset)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.known == nil || len(z.known) > 2000 { // all offsets and all names are fewer
		z.known = map[string]*time.Location{}
	}
	z.known[name] = loc
	return loc, nil
}

// zoneNames are the attributes that may hold a contact's time zone.
var zoneNames = [...]string{"timezone", "time_zone", "tz"}

// zoneOf returns the zone that a contact's attributes name, nil for none.
func (z *zones) zoneOf(attributes []attribute) *time.Location {
	for _, name := range zoneNames {
		for _, a := range attributes {
			if a.kind == kindString && strings.EqualFold(a.name, name) {
				if loc, err := z.find(a.s); err == nil {
					return loc
				}
			}
		}
	}
	return nil
}
