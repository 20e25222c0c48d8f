package mailauth

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"relayd/internal/mail"
)

// isSPF tells whether a TXT record is an SPF record (RFC 7208 section 4.5).
func isSPF(txt string) bool {
	version, _, _ := strings.Cut(txt, " ")
	return strings.EqualFold(version, "v=spf1")
}

// The grammar of RFC 7208 section 12. c, r and t are macro letters of explanations only.
const (
	macroExpand = `%(?:[%_-]|\{[slodiphvSLODIPHV](?:[1-9][0-9]*)?[rR]?[-.+,/_=]*\})`
	macroString = `(?:[!-$&-~]|` + macroExpand + `)*`
	topLabel    = `(?:[0-9A-Za-z]*[A-Za-z][0-9A-Za-z]*|[0-9A-Za-z]+-[0-9A-Za-z-]*[0-9A-Za-z])`
)

var (
	macroStringForm = regexp.MustCompile(`^` + macroString + `$`)
	domainSpecForm  = regexp.MustCompile(`^(?:` + macroString + `\.` + topLabel + `\.?|` + macroString + macroExpand + `)$`)
	modifierForm    = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9._-]*)=(.*)$`)
	hostForm        = regexp.MustCompile(`^(?i:a|mx)(?::(.*?))?(?:/([0-9]+))?(?://([0-9]+))?$`)
)

// checkSyntax reads an SPF record whole: an error anywhere in it makes the result permerror (RFC 7208 section 4.6).
func checkSyntax(record string) error {
	if i := strings.IndexFunc(record, func(c rune) bool { return c < ' ' || c > '~' }); i >= 0 {
		return fmt.Errorf("character %d is none that a record may hold", i+1)
	}
	seen := map[string]bool{}
	for i, term := range strings.Split(record, " ") {
		if i == 0 || term == "" {
			continue
		}
		var err error
		if m := modifierForm.FindStringSubmatch(term); m != nil {
			name := strings.ToLower(m[1])
			switch {
			case name != "redirect" && name != "exp":
				if !macroStringForm.MatchString(m[2]) {
					err = errors.New("no valid value")
				}
			case seen[name]:
				err = errors.New("given twice")
			default:
				seen[name] = true
				err = checkDomainSpec(m[2])
			}
		} else {
			err = checkMechanism(strings.TrimLeft(term[:1], "+-?~") + term[1:])
		}
		if err != nil {
			return fmt.Errorf("term %q: %w", mail.CleanText(term, 100), err)
		}
	}
	return nil
}

func checkMechanism(term string) error {
	name, rest, colon := strings.Cut(term, ":")
	switch name = strings.ToLower(name); name {
	case "all":
		if colon {
			return errors.New("takes no value")
		}
		return nil
	case "include", "exists":
		return checkDomainSpec(rest)
	case "ptr":
		if !colon {
			return nil
		}
		return checkDomainSpec(rest)
	case "ip4", "ip6":
		return checkNetwork(name, rest)
	}
	m := hostForm.FindStringSubmatch(term)
	if m == nil {
		return errors.New("no such mechanism")
	}
	if colon {
		if err := checkDomainSpec(m[1]); err != nil {
			return err
		}
	}
	for i, most := range []int{32, 128} {
		if m[2+i] != "" {
			if err := checkPrefix(m[2+i], most); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkDomainSpec(s string) error {
	if !domainSpecForm.MatchString(s) {
		return errors.New("no valid domain name")
	}
	return nil
}

func checkNetwork(name, s string) error {
	addr, prefix, slash := strings.Cut(s, "/")
	ip, err := netip.ParseAddr(addr)
	if err != nil || ip.Zone() != "" || ip.Is4() != (name == "ip4") {
		return fmt.Errorf("no valid IPv%s address", name[2:])
	}
	if !slash {
		return nil
	}
	return checkPrefix(prefix, ip.BitLen())
}

func checkPrefix(s string, most int) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > most || strconv.Itoa(n) != s {
		return fmt.Errorf("no valid prefix length, 0 to %d", most)
	}
	return nil
}
