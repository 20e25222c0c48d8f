package demo

import (
	"bytes"
	"encoding/csv"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
)

func TestCustomers(t *testing.T) {
	t.Parallel()
	t.Run("the_same_at_every_start", func(t *testing.T) {
		t.Parallel()
		first, second := Customers(500), Customers(500)
		require.Equal(t, first, second)
		require.Equal(t, Customers(100), first[:105], "a longer list begins like a shorter one")
	})
	t.Run("n_are_subscribed_and_some_more_are_not", func(t *testing.T) {
		t.Parallel()
		for _, n := range []int{1, 19, 20, 200, 1000} {
			subscribed := 0
			for _, c := range Customers(n) {
				if c.Subscribed {
					subscribed++
				}
			}
			require.Equal(t, n, subscribed)
			require.Len(t, Customers(n), n+n/20)
		}
	})
	t.Run("addresses_are_valid_different_and_in_example_domains", func(t *testing.T) {
		t.Parallel()
		seen, domains, korean := map[string]bool{}, map[string]bool{}, 0
		for _, c := range Customers(1000) {
			p, err := mail.ParsePath(c.Email)
			require.NoError(t, err)
			require.False(t, seen[p.Key()], c.Email)
			seen[p.Key()] = true
			require.True(t, strings.HasSuffix(p.Domain, ".example"))
			domains[p.Domain] = true
			require.Contains(t, []string{"M", "F", ""}, c.Gender)
			require.False(t, c.CreatedAt.Before(time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)))
			if strings.ContainsFunc(c.Name, func(r rune) bool { return r >= '가' && r <= '힣' }) {
				korean++
			}
		}
		require.Len(t, domains, len(Domains()))
		require.InDelta(t, len(seen)/2, korean, 1)
	})
}

func TestWriteCSV(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	require.NoError(t, WriteCSV(&b, Customers(40)))
	rows, err := csv.NewReader(&b).ReadAll()
	require.NoError(t, err)
	require.Equal(t, []string{"Name", "Email", "Gender", "CreateTime", "SubscriptionStatus"}, rows[0])
	require.Len(t, rows, 1+42)
	var spellings []string
	for _, r := range rows[1:] {
		spellings = append(spellings, r[4])
	}
	slices.Sort(spellings)
	require.Greater(t, len(slices.Compact(spellings)), 6, "the status is written in many ways")
}
