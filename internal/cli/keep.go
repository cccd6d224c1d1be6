package cli

import (
	"fmt"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/rbd2qcow2/rbd2qcow2/internal/retention"
)

// keepFlags are the rules of retention.
type keepFlags struct{ policy retention.Policy }

func (f *keepFlags) add(flags *pflag.FlagSet) {
	p := &f.policy
	for _, rule := range []struct {
		value *int
		name  string
		usage string
	}{
		{&p.Last, "keep-last", "keep the last `N` points; \"unlimited\": all, also below"},
		{&p.Hourly, "keep-hourly", "keep the newest point of each of the last `N` hours that have one"},
		{&p.Daily, "keep-daily", "the same for `N` days"},
		{&p.Weekly, "keep-weekly", "for `N` weeks, which begin on Mondays"},
		{&p.Monthly, "keep-monthly", "for `N` months"},
		{&p.Yearly, "keep-yearly", "for `N` years"},
	} {
		flags.Var((*countValue)(rule.value), rule.name, rule.usage)
	}
	flags.Var((*durationValue)(&p.Within), "keep-within",
		"keep what was made within a `DURATION` before the newest point: years, months, days and hours as in 2y5m7d3h")
	flags.Var((*limitValue)(&p.MaxChain), "max-chain",
		"let no chain have more than `N` points: those that are missed least go, even if a rule keeps them")
}

// countValue is the number of a rule.
type countValue int

func (v *countValue) Set(s string) error {
	if s == "unlimited" {
		*v = retention.Unlimited
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return fmt.Errorf("%q: must be a number, or \"unlimited\"", s)
	}
	*v = countValue(n)
	return nil
}

func (v *countValue) String() string {
	switch *v {
	case 0:
		return ""
	case retention.Unlimited:
		return "unlimited"
	}
	return strconv.Itoa(int(*v))
}

func (v *countValue) Type() string { return "count" }

// limitValue is a number that is at least 1 if it is given.
type limitValue int

func (v *limitValue) Set(s string) error {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || n == 0 {
		return fmt.Errorf("%q: must be a number, at least 1", s)
	}
	*v = limitValue(n)
	return nil
}

func (v *limitValue) String() string { return (*countValue)(v).String() }
func (v *limitValue) Type() string   { return "limit" }

// durationValue is the time of a rule.
type durationValue retention.Duration

func (v *durationValue) Set(s string) error {
	d, err := retention.ParseDuration(s)
	*v = durationValue(d)
	return err
}

func (v *durationValue) String() string { return retention.Duration(*v).String() }
func (v *durationValue) Type() string   { return "duration" }
