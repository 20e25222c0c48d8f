package source

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // zones must not depend on what the machine has installed
)

// parseZone reads "UTC", "+09:00" or an IANA name; "" is nil: no zone is said.
func parseZone(s string) (*time.Location, error) {
	if s == "" {
		return nil, nil
	}
	if s[0] == '+' || s[0] == '-' {
		t, err := time.Parse("-07:00", s)
		if err != nil {
			return nil, fmt.Errorf("%q is not an offset such as +09:00", s)
		}
		_, offset := t.Zone()
		if offset < -14*3600 || offset > 14*3600 {
			return nil, fmt.Errorf("%q is more than 14 hours", s)
		}
		return time.FixedZone(s, offset), nil
	}
	if s == "Local" || strings.ContainsFunc(s, isControl) || len(s) > 64 {
		return nil, fmt.Errorf("this is not a zone such as Asia/Seoul")
	}
	l, err := time.LoadLocation(s)
	if err != nil {
		return nil, fmt.Errorf("%q is not a zone such as Asia/Seoul", s)
	}
	return l, nil
}

// moment is a time by a column's own clock, in microseconds since 1970: of a column with a zone that is the true time,
// of a column without one what its wall clock shows, read as UTC. The database compares by this clock, and so do we.
type moment int64

// clockLayout is how both databases write a time, and take one.
const clockLayout = "2006-01-02 15:04:05.999999"

// parseMoment reads what a database writes in a session that is set to UTC. false for a zero date or an infinite time.
func parseMoment(s string) (moment, bool) {
	s = strings.TrimSuffix(s, "+00")
	t, err := time.Parse(clockLayout, s)
	if err != nil {
		return 0, false
	}
	return moment(t.UnixMicro()), true
}

func (m moment) sql() string {
	return time.UnixMicro(int64(m)).UTC().Format("2006-01-02 15:04:05.000000")
}

func (m moment) add(d time.Duration) moment { return m + moment(d.Microseconds()) }

// time is the true time of m by the clock of zone; nil for a column with a zone.
func (m moment) time(zone *time.Location) time.Time {
	t := time.UnixMicro(int64(m)).UTC()
	if zone == nil {
		return t
	}
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), zone).UTC()
}

// momentOf is the inverse: what a clock in zone shows at t.
func momentOf(t time.Time, zone *time.Location) moment {
	if zone == nil {
		return moment(t.UnixMicro())
	}
	t = t.In(zone)
	return moment(time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), time.UTC).UnixMicro())
}
