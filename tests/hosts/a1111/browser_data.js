// A user of the page "Data set" in a real browser, for test_browser_data.py: node browser_data.js PORT FOLDER OUT; answers
// are lines of JSON. FOLDER: 1,000 pictures, of which the first has a caption and a name that try to run scripts.
const {chromium} = require("playwright-core");

const [port, folder, out] = process.argv.slice(2);
const say = (name, value) => console.log(JSON.stringify({[name]: value}));

// Scroll through everything in so many seconds; the time between frames, and how many cards there are at once.
const SCROLL = `async seconds => {
    const gallery = document.querySelector("#atelier_gallery"), gaps = [];
    let last = performance.now(), most = 0;
    const end = gallery.scrollHeight - gallery.clientHeight, start = last;
    await new Promise(done => {
        const step = now => {
            gaps.push(now - last);
            last = now;
            most = Math.max(most, document.querySelectorAll(".atelier-card").length);
            const part = Math.min(1, (now - start) / (1000 * seconds));
            gallery.scrollTop = end * part;
            part < 1 ? requestAnimationFrame(step) : done();
        };
        requestAnimationFrame(step);
    });
    return {frames: gaps.length, longest_ms: Math.round(Math.max(...gaps)), cards: most};
}`;
const IN_VIEW = () => {
    const gallery = document.querySelector("#atelier_gallery");
    if (!gallery) return false;
    const box = gallery.getBoundingClientRect();
    const seen = [...document.querySelectorAll(".atelier-card")].filter(card => {
        const own = card.getBoundingClientRect();
        return own.bottom > box.top && own.top < box.bottom;
    });
    return seen.length > 3 && seen.every(card => card.querySelector("img[src]"));
};

(async() => {
    const browser = await chromium.launch({executablePath: process.env.CHROMIUM || undefined, args: ["--no-sandbox", "--disable-gpu"]});
    const faults = [];
    try {
        const page = await browser.newPage({viewport: {width: 1400, height: 1100}});
        page.setDefaultTimeout(120000);
        page.on("pageerror", error => faults.push(error.message));
        const text = selector => page.textContent(selector);
        const timed = async(name, action) => {
            const start = Date.now();
            await action();
            say(name, Date.now() - start);
        };
        await page.goto(`http://127.0.0.1:${port}/`, {waitUntil: "domcontentloaded", timeout: 300000});
        await page.waitForFunction(() => document.querySelector("#atelier_root .atelier-tabs"), null, {timeout: 120000});
        await page.evaluate(() => {
            [...document.querySelectorAll("#tabs > .tab-nav > button")][5].click();
        });
        await page.waitForTimeout(500);
        await page.evaluate(() => {
            const tabs = [...document.querySelectorAll("#train_tabs > .tab-nav > button")];
            tabs[tabs.length - 1].click();
        });
        await page.click("#atelier_tab_data");

        // what is wrong is said in a sentence
        await page.fill("#atelier_data_folder", folder + "-none");
        await page.click("#atelier_data_open");
        await page.waitForSelector("#atelier_data .atelier-error", {state: "visible"});
        say("error", await text("#atelier_data .atelier-error"));

        await page.fill("#atelier_data_folder", `"${folder}"`);
        await timed("opened_ms", async() => {
            await page.click("#atelier_data_open");
            await page.waitForFunction(IN_VIEW, null, {timeout: 120000});
        });
        const all = await text("#atelier_data_count");
        say("words", [await text("#atelier_tab_data"), await text("#atelier_data_tab_cut"), all, await text("#atelier_data_plan")]);
        say("first", [await text(".atelier-card >> nth=0 >> .atelier-card-name"), await text(".atelier-card >> nth=0 >> .atelier-card-caption")]);
        say("tags", await page.$$eval(".atelier-tag-name span", tags => tags.slice(0, 40).map(tag => tag.textContent)));
        say("scrolled", await page.evaluate(`(${SCROLL})(4)`));
        await timed("end_ms", () => page.waitForFunction(IN_VIEW, null, {timeout: 120000}));
        await page.evaluate(() => {
            document.querySelector("#atelier_gallery").scrollTop = 0;
        });

        // one caption, written as it is
        await page.click(".atelier-card >> nth=0");
        await page.waitForSelector("#atelier_data_caption");
        say("caption", await page.inputValue("#atelier_data_caption"));
        await page.fill("#atelier_data_caption", "<b onmouseover=hit=1>one</b>, 日本");
        await page.click("#atelier_data_save");
        await page.waitForSelector("#atelier_data_undo");
        await page.waitForFunction(() => document.querySelector(".atelier-card .atelier-card-caption").textContent.includes("日本"));

        // an edit of those that a filter finds: shown, then written
        await page.fill("#atelier_data_all", "common, odd");
        await page.waitForFunction(() => /500/.test(document.querySelector("#atelier_data_count").textContent), null, {timeout: 120000});
        await page.fill("#atelier_data_words_0", "odd");
        await timed("plan_ms", async() => {
            await page.click("#atelier_data_plan");
            await page.waitForSelector("#atelier_data_difference del");
        });
        say("difference", [await text("#atelier_data_difference b"), await text("#atelier_data_difference del"), await page.$$eval("#atelier_data_difference li", lines => lines.length)]);
        await timed("apply_ms", async() => {
            await page.click("#atelier_data_apply");
            await page.waitForFunction(() => !document.querySelector("#atelier_data_difference"), null, {timeout: 120000});
        });
        await page.click("#atelier_data_clear");
        await page.waitForFunction(all => document.querySelector("#atelier_data_count").textContent === all, all);
        say("written", await page.$$eval(".atelier-tag-name", tags => tags.map(tag => tag.textContent)));
        console.log(JSON.stringify({edited: true}));
        // the other side compares the files, then lets this go on
        await new Promise(done => process.stdin.once("data", done));
        for (let i = 0; i < 2; i++) {
            const before = await text(".atelier-data-head");
            await page.click("#atelier_data_undo");
            await page.waitForFunction(was => document.querySelector(".atelier-data-head").textContent !== was, before, {timeout: 120000});
        }
        await page.waitForSelector("#atelier_data_undo", {state: "detached"});

        // what will be cut
        await page.click("#atelier_data_tab_cut");
        await page.click("#atelier_data_buckets");
        await page.waitForFunction(() => [...document.querySelectorAll(".atelier-cut img")].filter(image => image.naturalWidth).length > 3, null, {timeout: 120000});
        say("cut", await page.$$eval(".atelier-cut", cuts => cuts.slice(0, 3).map(cut => cut.textContent)));
        await page.click(".atelier-cut >> nth=0");
        await page.waitForFunction(() => {
            const image = document.querySelector(".atelier-over img");
            return image && image.naturalWidth;
        }, null, {timeout: 120000});
        say("trained", await page.evaluate(() => {
            const image = document.querySelector(".atelier-over img");
            return [image.naturalWidth, image.naturalHeight];
        }));
        await page.click(".atelier-over");

        // a check: begun, found again by a page that is opened anew, and a finding leads to its picture
        await page.click("#atelier_data_tab_check");
        await page.click("#atelier_data_check");
        await page.waitForSelector("#atelier_job_check .atelier-section", {timeout: 300000});
        say("found", await text("#atelier_job_check .atelier-section"));
        say("same", await page.$$eval(".atelier-same figure", figures => figures.map(figure => figure.textContent)));
        await page.click(".atelier-same .atelier-link >> nth=0");
        await page.waitForFunction(() => document.querySelector(".atelier-card-chosen"), null, {timeout: 120000});
        say("led_to", await text("#atelier_data_editor b"));

        // pictures into a new folder, which is opened then
        await page.click("#atelier_data_tab_prepare");
        await page.check("#atelier_step_bucket");
        await page.check("#atelier_step_dedupe");
        await page.fill("#atelier_data_bucket_resolution", "64");
        await page.evaluate(() => document.querySelectorAll(".atelier-step-settings details").forEach(more => {
            more.open = true;
        }));
        await page.fill("#atelier_data_bucket_min_px", "64");
        await page.fill("#atelier_data_out", out);
        await page.click("#atelier_data_prepare");
        await page.waitForSelector("#atelier_data_open_out", {timeout: 300000});
        say("prepared", await text("#atelier_job_prepare .atelier-job-result b"));
        await page.click("#atelier_data_open_out");
        await page.waitForFunction(name => document.querySelector(".atelier-data-head h3").textContent === name, out.split("/").pop(), {timeout: 120000});

        // captions by models: what is missing is said
        await page.click("#atelier_data_tab_caption");
        const missing = {};
        for (const key of await page.$$eval("#atelier_data_model option", options => options.map(option => option.value))) {
            await page.selectOption("#atelier_data_model", key);
            missing[key] = await text("#atelier_data_missing");
        }
        say("missing", missing);
        say("harmless", await page.evaluate(() => window.hit === undefined));
        say("faults", faults);
    } finally {
        await browser.close();
        process.stdin.destroy();
    }
})().catch(error => {
    say("broken", String(error).slice(0, 1500));
    process.exitCode = 1;
});
