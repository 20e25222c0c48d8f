package delivery

import (
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

var hintPattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)(?:again|retry|wait|come back|resend)\D{0,40}?(\d{1,5})\s*(sec|min|hour|s\b|m\b|h\b)`)
})

// delayHint reads "try again in 300 seconds" out of a reply; 0 when there is nothing of the kind.
func delayHint(text string) time.Duration {
	m := hintPattern().FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	unit := time.Second
	switch strings.ToLower(m[2])[0] {
	case 'm':
		unit = time.Minute
	case 'h':
		unit = time.Hour
	}
	return min(time.Duration(n)*unit, 24*time.Hour)
}
