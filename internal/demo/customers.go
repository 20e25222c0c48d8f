package demo

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"time"
)

// Customer is one row of a shop's customer table.
type Customer struct {
	Name       string
	Email      string
	Gender     string // "M", "F", or "" where the shop does not know
	CreatedAt  time.Time
	Status     string // subscription status as shops write it: true, "yes", 1, OPT_OUT…
	Subscribed bool   // what Status means
}

// Domains are the domains of the customers' addresses. All are below .example (RFC 2606 section 3), one is international.
func Domains() []string {
	return []string{
		"haneul.example", "namu-mail.example", "seoul-post.example", "바다.example",
		"harbor.example", "willow-mail.example", "maple.example", "quarry.example",
	}
}

const koreanDomains = 4 // the first of Domains

type givenName struct{ name, latin, gender string }

type surname struct{ name, latin string }

func koreanSurnames() []surname {
	return []surname{
		{"김", "kim"},
		{"이", "lee"},
		{"박", "park"},
		{"최", "choi"},
		{"정", "jung"},
		{"강", "kang"},
		{"조", "cho"},
		{"윤", "yoon"},
		{"장", "jang"},
		{"임", "lim"},
		{"한", "han"},
		{"오", "oh"},
		{"서", "seo"},
		{"신", "shin"},
		{"권", "kwon"},
		{"황", "hwang"},
		{"안", "ahn"},
		{"송", "song"},
		{"류", "ryu"},
		{"홍", "hong"},
	}
}

func koreanGiven() []givenName {
	return []givenName{
		{"민준", "minjun", "M"},
		{"서연", "seoyeon", "F"},
		{"도윤", "doyun", "M"},
		{"지우", "jiwoo", "F"},
		{"시우", "siwoo", "M"},
		{"하은", "haeun", "F"},
		{"주원", "juwon", "M"},
		{"수아", "sua", "F"},
		{"지호", "jiho", "M"},
		{"지유", "jiyu", "F"},
		{"준서", "junseo", "M"},
		{"채원", "chaewon", "F"},
		{"현우", "hyunwoo", "M"},
		{"은서", "eunseo", "F"},
		{"건우", "gunwoo", "M"},
		{"다은", "daeun", "F"},
		{"태양", "taeyang", "M"},
		{"예린", "yerin", "F"},
		{"한결", "hangyeol", ""},
		{"가온", "gaon", ""},
	}
}

func englishSurnames() []surname {
	return []surname{
		{"Adler", "adler"},
		{"Bennett", "bennett"},
		{"Carver", "carver"},
		{"Doyle", "doyle"},
		{"Ellis", "ellis"},
		{"Foster", "foster"},
		{"Grant", "grant"},
		{"Hughes", "hughes"},
		{"Irwin", "irwin"},
		{"Jarvis", "jarvis"},
		{"Keane", "keane"},
		{"Lawson", "lawson"},
		{"O'Neill", "oneill"},
		{"Mercer", "mercer"},
		{"Norris", "norris"},
		{"Price", "price"},
		{"Quinn", "quinn"},
		{"Reeves", "reeves"},
		{"St. John", "stjohn"},
		{"Turner", "turner"},
	}
}

func englishGiven() []givenName {
	return []givenName{
		{"Ann", "ann", "F"},
		{"Ben", "ben", "M"},
		{"Chloe", "chloe", "F"},
		{"Daniel", "daniel", "M"},
		{"Emma", "emma", "F"},
		{"Felix", "felix", "M"},
		{"Grace", "grace", "F"},
		{"Henry", "henry", "M"},
		{"Isla", "isla", "F"},
		{"Jack", "jack", "M"},
		{"Zoë", "zoe", "F"},
		{"Liam", "liam", "M"},
		{"Mia", "mia", "F"},
		{"Noah", "noah", "M"},
		{"Olivia", "olivia", "F"},
		{"Peter", "peter", "M"},
		{"Ruby", "ruby", "F"},
		{"Samuel", "samuel", "M"},
		{"Robin", "robin", ""},
		{"Alex", "alex", ""},
	}
}

// unsubscribedEvery is how many subscribed customers there are for one who has opted out.
const unsubscribedEvery = 20

// Customers makes up n subscribed customers and, among them, one more for every 20 who has opted out. The same n gives
// the same customers; no address occurs twice.
func Customers(n int) []Customer {
	yes := []string{"true", "True", "1", "yes", "subscribed", "OPT_IN"}
	no := []string{"false", "0", "no", "unsubscribed", "OPT_OUT"}
	all := make([]Customer, 0, n+n/unsubscribedEvery)
	for i := range n {
		c := customer(len(all))
		c.Status, c.Subscribed = yes[i%len(yes)], true
		all = append(all, c)
		if i%unsubscribedEvery == unsubscribedEvery-1 {
			c := customer(len(all))
			c.Status = no[(i/unsubscribedEvery)%len(no)]
			all = append(all, c)
		}
	}
	return all
}

// customer makes up the customer with number i; every second one is Korean.
func customer(i int) Customer {
	r := mix(uint64(i))                                                           //nolint:gosec // i counts from 0
	pick := func(n int) int { v := int(r % uint64(n)); r /= uint64(n); return v } //nolint:gosec // n is a short length
	c := Customer{}
	domains := Domains()
	if i%2 == 0 {
		s, g := koreanSurnames()[pick(20)], koreanGiven()[pick(20)]
		c.Name, c.Gender = s.name+g.name, g.gender
		c.Email = g.latin + "." + s.latin + strconv.Itoa(i) + "@" + domains[pick(koreanDomains)]
	} else {
		s, g := englishSurnames()[pick(20)], englishGiven()[pick(20)]
		c.Name, c.Gender = g.name+" "+s.name, g.gender
		c.Email = g.latin + "." + s.latin + strconv.Itoa(i) + "@" + domains[koreanDomains+pick(len(domains)-koreanDomains)]
	}
	const threeYears = 3 * 365 * 24 * 60 * 60
	c.CreatedAt = time.Date(2023, 1, 1, 0, 0, pick(threeYears), 0, time.UTC)
	return c
}

// mix spreads the bits of n (the finaliser of splitmix64): the customers look random and are the same at every start.
func mix(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// WriteCSV writes the customers as a shop exports them: Name, Email, Gender, CreateTime (RFC 3339), SubscriptionStatus.
func WriteCSV(w io.Writer, customers []Customer) error {
	c := csv.NewWriter(w)
	rows := [][]string{{"Name", "Email", "Gender", "CreateTime", "SubscriptionStatus"}}
	for _, u := range customers {
		rows = append(rows, []string{u.Name, u.Email, u.Gender, u.CreatedAt.Format(time.RFC3339), u.Status})
	}
	if err := c.WriteAll(rows); err != nil {
		return fmt.Errorf("write customers: %w", err)
	}
	return nil
}
